"""Entities of the texts in a column of Polars."""

from typing import TYPE_CHECKING

from spanlake import Extractor
from spanlake.adapters.search import Search, missing
from spanlake.labels import Labels, Threshold

if TYPE_CHECKING:
    from spanlake.rules import Rules

try:
    import polars as pl
except ImportError as error:
    raise missing("polars", "polars") from error

_FIELDS = {"start": pl.Int64, "end": pl.Int64, "text": pl.String, "label": pl.String, "score": pl.Float64}
ENTITIES = pl.List(pl.Struct(_FIELDS))
ENTITIES_AND_SOURCE = pl.List(pl.Struct(_FIELDS | {"source": pl.String}))  # where rules are given


def find_entities(
    texts: pl.Expr,
    extractor: Extractor,
    labels: Labels,
    threshold: Threshold | None = None,
    nested: bool = False,
    multi_label: bool = False,
    rules: "Rules | None" = None,
) -> pl.Expr:
    """Returns an expression: for each text a list of structs (`ENTITIES`, with rules
    `ENTITIES_AND_SOURCE`), or null where the text is null.

    `start` and `end` count code points; functions of Polars such as `str.slice` count so too. Evaluation raises as
    `Extractor.extract` does.
    """
    search = Search(extractor, labels, threshold, nested, multi_label, rules)
    entities = ENTITIES_AND_SOURCE if rules else ENTITIES

    def find(column: pl.Series) -> pl.Series:
        return pl.Series("entities", search.rows(column), dtype=entities)

    return texts.map_batches(find, return_dtype=entities, is_elementwise=True).alias("entities")
