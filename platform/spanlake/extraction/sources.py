"""Readers of units, one for each kind of source."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from spanlake.errors import one_line
from spanlake.extraction.lines import READ_ERROR, LineReader
from spanlake.extraction.plan import Source, Unit
from spanlake.extraction.rows import RowReader, SourceReadError
from spanlake.extraction.store import Place
from spanlake.extraction.texts import decoded, text_values


class UnitReader(Protocol):
    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows in order. Raises: SourceReadError, after which other units can still be read."""
        ...


@dataclass(frozen=True)
class Reading:
    """What a worker must know of a source to read its units."""

    root: Place  # the directory that paths of units are relative to
    format: str
    schema: pa.Schema
    text_column: str

    @staticmethod
    def of(source: Source, text_column: str) -> "Reading":
        return Reading(source.root, source.format, source.schema, text_column)

    def open(self) -> UnitReader:
        if self.format in ("parquet", "table"):
            return ParquetReader(self.root, self.schema)
        return LineReader(self.root, self.schema, self.text_column)


def read_texts(batch: pa.RecordBatch, text_column: str) -> tuple[pa.Array, list[str | None]]:
    """The texts, null where there is none; and for each, what the reader found instead."""
    texts, reasons = decoded(text_values(batch, text_column))
    if READ_ERROR not in batch.schema.names:
        return texts, reasons
    errors = batch.column(READ_ERROR)
    return pc.if_else(pc.is_null(errors), texts, pa.scalar(None, texts.type)), errors.to_pylist()


class ParquetReader:
    """Reads units of Parquet files with the source's columns: null in files that lack them."""

    def __init__(self, root: Place, schema: pa.Schema) -> None:
        self._rows = RowReader(root)
        self._schema = schema

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows in order. Raises: SourceReadError, after which other units can still be read."""
        places = json.loads(unit.columns) if unit.columns else {}
        for batch in self._rows.read(unit):
            try:
                arrays = [_column(batch, field, places.get(field.name)) for field in self._schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)
            except pa.ArrowException as error:
                raise SourceReadError(
                    f"{unit.describe()} do not fit the source's columns ({one_line(error)})"
                ) from error


def _column(batch: pa.RecordBatch, column: pa.Field, place: dict[str, Any] | None) -> pa.Array:
    """A column of the source, from the place in the file that its unit names (see tables.py), or under its own name."""
    if place and "value" in place:
        value = pa.array([place["value"]], pa.string()).cast(column.type)
        return pc.take(value, pa.array([0] * batch.num_rows, pa.int64()))
    name = place["name"] if place else column.name
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, column.type)
    values = batch.column(name)
    return values if values.type == column.type else values.cast(column.type)
