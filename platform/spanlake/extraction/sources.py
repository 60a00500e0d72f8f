"""Readers of units, one for each kind of source."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from spanlake.extraction.lines import READ_ERROR, LineReader
from spanlake.extraction.plan import Source, Unit
from spanlake.extraction.rows import RowReader
from spanlake.extraction.store import Place
from spanlake.extraction.tables import TableReader


class UnitReader(Protocol):
    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows in order. Raises: SourceReadError, after which other units can still be read."""
        ...


@dataclass(frozen=True)
class Reading:
    """What a worker must know of a source to read its units."""

    root: Place  # the directory that paths of units are relative to
    format: str = "parquet"
    schema: pa.Schema | None = None  # where files do not say it themselves
    text_column: str = "text"

    @staticmethod
    def of(source: Source, text_column: str) -> "Reading":
        return Reading(source.root, source.format, source.schema, text_column)

    def open(self) -> UnitReader:
        if self.format == "parquet":
            return RowReader(self.root)
        if self.format == "table":
            return TableReader(self.root, self.schema)
        return LineReader(self.root, self.schema, self.text_column)


def split_errors(batch: pa.RecordBatch, texts: pa.Array) -> tuple[pa.Array, list[str | None]]:
    """The texts, null where the reader found no row; and for each, what it found instead."""
    if READ_ERROR not in batch.schema.names:
        return texts, [None] * batch.num_rows
    errors = batch.column(READ_ERROR)
    return pc.if_else(pc.is_null(errors), texts, pa.scalar(None, texts.type)), errors.to_pylist()
