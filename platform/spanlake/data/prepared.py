"""The training format: a directory of Parquet files that stream, and what is in them.

`NAME-00000.parquet`, ... for each source, and `statistics.json`, written last: a directory without it was not finished.
Columns: `text: string`, `mentions: list<struct<start: int32, end: int32, label: string>>` (code points, end exclusive),
`negatives: list<string>` (types that the text is known not to mention), `source: string`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from spanlake.data.examples import Example, Mention
from spanlake.errors import UserError, one_line
from spanlake.storage import Place

FORMAT_VERSION = 1
STATISTICS = "statistics.json"
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("mentions", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
    ]
)


def read_statistics(place: Place) -> dict[str, Any] | None:
    """Returns what `prepare` wrote about the directory; None where it is not a finished one.

    Raises `UserError` for one of a format that this version does not read.
    """
    try:
        statistics = json.loads(place.read(STATISTICS) or b"null")
    except ValueError:
        return None
    except OSError as error:
        raise UserError(f"{place.uri} cannot be read ({one_line(error)}).") from error
    if not isinstance(statistics, dict) or "format_version" not in statistics:
        return None
    if statistics["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{place.uri} is of the training format {statistics['format_version']}; this version reads "
            f"{FORMAT_VERSION}, so prepare it again."
        )
    return statistics


def examples_of(batch: pa.Table) -> Iterator[Example]:
    """The rows of the training format as annotated texts."""
    for text, mentions, negatives in zip(
        batch["text"].to_pylist(), batch["mentions"].to_pylist(), batch["negatives"].to_pylist(), strict=True
    ):
        yield Example(text, tuple(Mention(m["start"], m["end"], m["label"]) for m in mentions), tuple(negatives))
