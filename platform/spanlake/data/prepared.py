"""The training format: a directory of Parquet files that training streams.

The files are `NAME-00000.parquet`, ... for each source, and `statistics.json`, which is written last: a directory
without it is not complete. The columns are `text: string`, `mentions: list<struct<start: int32, end: int32,
types: list<string>>>` (code points, end exclusive; types from specific to broad), `negatives: list<string>` (types that
the text is known not to mention), `source: string`. Version 1 has `label: string` instead of `types`, and can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from spanlake.data.examples import Example, mention_of
from spanlake.errors import UserError, one_line
from spanlake.storage import Place

FORMAT_VERSION = 2
_READ = (1, 2)  # versions that can be read
STATISTICS = "statistics.json"
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        (
            "mentions",
            pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("types", pa.list_(pa.string()))])),
        ),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
    ]
)


def read_statistics(place: Place) -> dict[str, Any] | None:
    """Returns the statistics that `prepare` wrote; None if the directory is not complete.

    Raises `UserError` for a format that this version does not read.
    """
    try:
        statistics = json.loads(place.read(STATISTICS) or b"null")
    except ValueError:
        return None
    except OSError as error:
        raise UserError(f"{place.uri} cannot be read ({one_line(error)}).") from error
    if not isinstance(statistics, dict) or "format_version" not in statistics:
        return None
    if statistics["format_version"] not in _READ:
        raise UserError(
            f"{place.uri} has the training format {statistics['format_version']}; this version reads "
            f"{' and '.join(map(str, _READ))}, so prepare it again."
        )
    return statistics


def examples_of(batch: pa.Table) -> Iterator[Example]:
    """Yields the rows of the training format as annotated texts."""
    for text, mentions, negatives in zip(
        batch["text"].to_pylist(), batch["mentions"].to_pylist(), batch["negatives"].to_pylist(), strict=True
    ):
        found = (mention_of(m["start"], m["end"], m["types"] if "types" in m else m["label"]) for m in mentions)
        yield Example(text, tuple(found), tuple(negatives))
