"""Entities of the texts in a pandas Series."""

from typing import TYPE_CHECKING

from spanlake import Extractor
from spanlake.adapters.search import Search, missing
from spanlake.labels import Labels, Threshold

if TYPE_CHECKING:
    from spanlake.rules import Rules

try:
    import pandas as pd
except ImportError as error:
    raise missing("pandas", "pandas") from error


def find_entities(
    texts: pd.Series,
    extractor: Extractor,
    labels: Labels,
    threshold: Threshold | None = None,
    nested: bool = False,
    multi_label: bool = False,
    rules: "Rules | None" = None,
) -> pd.Series:
    """Returns a Series with the index of `texts`: for each text a list of dictionaries, or None where it is missing.

    Raises as `Extractor.extract` does.
    """
    return in_series(texts, Search(extractor, labels, threshold, nested, multi_label, rules))


def in_series(texts: pd.Series, search: Search) -> pd.Series:
    """Does what `find_entities` does."""
    values = [None if is_missing else text for text, is_missing in zip(texts, texts.isna(), strict=True)]
    return pd.Series(search.rows(values), index=texts.index, name="entities", dtype=object)
