"""Entities of the texts in a column of Polars."""

from spanlake import Extractor
from spanlake.adapters.search import Search, missing
from spanlake.labels import Labels, Threshold

try:
    import polars as pl
except ImportError as error:
    raise missing("polars", "polars") from error

ENTITIES = pl.List(
    pl.Struct({"start": pl.Int64, "end": pl.Int64, "text": pl.String, "label": pl.String, "score": pl.Float64})
)


def find_entities(
    texts: pl.Expr,
    extractor: Extractor,
    labels: Labels,
    threshold: Threshold | None = None,
    nested: bool = False,
    multi_label: bool = False,
) -> pl.Expr:
    """Returns an expression: for each text a list of structs (`ENTITIES`), or null where the text is null.

    `start` and `end` count code points; functions of Polars such as `str.slice` count so too. Evaluation raises as
    `Extractor.extract` does.
    """
    search = Search(extractor, labels, threshold, nested, multi_label)

    def find(column: pl.Series) -> pl.Series:
        return pl.Series("entities", search.rows(column), dtype=ENTITIES)

    return texts.map_batches(find, return_dtype=ENTITIES, is_elementwise=True).alias("entities")
