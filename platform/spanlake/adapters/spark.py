"""A Spark function that finds entities in a column of texts."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from spanlake import Extractor
from spanlake.adapters.pandas import in_series
from spanlake.adapters.search import Search, missing
from spanlake.labels import Labels, Threshold

if TYPE_CHECKING:
    from spanlake.rules import Rules

try:
    import pandas as pd
    from pyspark.sql.functions import pandas_udf
except ImportError as error:
    raise missing("pyspark and pandas", "spark") from error

_FIELDS = "start:int,end:int,text:string,label:string,score:double"
ENTITIES = f"array<struct<{_FIELDS}>>"
ENTITIES_AND_SOURCE = f"array<struct<{_FIELDS},source:string>>"  # where rules are given


def entities_udf(
    extractor: Extractor,
    labels: Labels,
    threshold: Threshold | None = None,
    nested: bool = False,
    multi_label: bool = False,
    rules: "Rules | None" = None,
) -> Callable[..., Any]:
    """Returns a function of a column of strings, for `DataFrame.select` and the like; null where the text is null.

    Spark carries the extractor by its model and settings. Each Python worker loads the model once, so the model must be
    at the same place on every machine, and `threads=1` suits an executor with a worker for each core. `start` and `end`
    count code points, as `substring` of Spark does (from 1).
    """
    search = Search(extractor, labels, threshold, nested, multi_label, rules)

    def find(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for texts in batches:
            yield in_series(texts, search)

    udf: Callable[..., Any] = pandas_udf(find, ENTITIES_AND_SOURCE if rules else ENTITIES)
    return udf
