"""The terms of a source: files, units of rows, and where a column's values come from."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from spanlake.errors import SpanlakeError, UserError
from spanlake.extraction.source.selection import Packed, pack, packed_length, unpack
from spanlake.extraction.source.texts import is_bytes, is_text, text_columns, text_path, text_type
from spanlake.storage import Place

CHANGE = "_change_type"  # the name in Delta's change data feed
INSERTED, DELETED = "insert", "delete"  # its values
ADDED_COLUMNS = ("entities", "error")  # in every output, in addition to the columns of the source
BATCH_ROWS = 512  # the most rows that a reader returns at once
BATCH_BYTES = 16 << 20  # about the most bytes

_COMPRESSED = r"(\.(gz|bz2|zst))?$"
_FORMATS = {
    "parquet": re.compile(r"\.(parquet|parq|pq)$"),
    "jsonl": re.compile(r"\.(jsonl|ndjson)" + _COMPRESSED),
    "json": re.compile(r"\.json" + _COMPRESSED),
    "csv": re.compile(r"\.csv" + _COMPRESSED),
    "tsv": re.compile(r"\.tsv" + _COMPRESSED),
}
_PREFIX_CHARACTERS = 100  # of a unit's name, for people


class SourceReadError(SpanlakeError):
    """Planned rows cannot be read: the file is missing, has changed, or is damaged."""


@dataclass(frozen=True, slots=True)
class FileColumn:
    """The column has another name in the file."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """The column has the same value in all rows of the file. It is a string; None is null."""

    value: str | None


ColumnPlaces = Mapping[str, FileColumn | Constant]  # by column; any other column has its own name in the file


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. `path` is relative to the source. `digest` (hex) changes with path, size or footer."""

    path: str
    size: int
    digest: str
    rows: int
    groups: tuple[int, ...]  # rows of each row group
    bytes: int  # of its columns, uncompressed
    columns: ColumnPlaces = field(default_factory=dict)
    kept: Packed = b""  # the packed mask of the rows that belong to the source; empty if all do
    possible: tuple[bool, ...] | None = None  # for each row group, whether it may fulfil --where; None if not judged

    @property
    def kept_rows(self) -> int:
        return int(unpack(self.kept).sum()) if self.kept else self.rows

    def mask(self) -> np.ndarray:
        """Returns for each row of the file whether it belongs to the source; the caller may change the array."""
        return unpack(self.kept) if self.kept else np.ones(self.rows, bool)

    def whole(self) -> "Unit":
        """Returns all rows that belong to the source as one unit."""
        return Unit(self.path, self.size, self.digest, 0, self.kept_rows, self.columns, self.kept)


@dataclass(frozen=True)
class Source:
    """Files in the order of their units' names, below the directory `root`, and the schema that fits them all."""

    uri: str
    root: Place
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    ignored: tuple[str, ...]  # paths of files that are not read, because of their names or first bytes
    deep: bool  # whether files in all directories below the root belong to it
    format: str = "parquet"  # or jsonl, json, csv, tsv, table
    changes: bool = False  # whether it has only the changes of a table, each marked in the column CHANGE
    since: int | None = None  # the version or snapshot from which they are; None for all rows

    @property
    def rows(self) -> int:
        return sum(file.kept_rows for file in self.files)


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows of one source file that are read, committed and counted together: `rows` rows, from `first` on."""

    path: str
    size: int
    digest: str
    first: int
    rows: int
    columns: ColumnPlaces = field(default_factory=dict)  # as for its file
    kept: Packed = b""  # the packed mask from `first` on, if some rows there do not belong to the source

    @property
    def span(self) -> int:
        """Returns the number of rows in the file from the first to the last."""
        return packed_length(self.kept) if self.kept else self.rows

    def places(self) -> Sequence[int]:
        """Returns the number of each row in the file."""
        if not self.kept:
            return range(self.first, self.first + self.rows)
        return (self.first + np.flatnonzero(unpack(self.kept))).tolist()

    def head(self, rows: int) -> "Unit":
        """Returns at most `rows` first rows of the unit."""
        rows = min(rows, self.rows)
        if not self.kept or not rows:
            return replace(self, rows=rows, kept=b"")
        span = self.places()[rows - 1] + 1 - self.first
        return replace(self, rows=rows, kept=pack(unpack(self.kept)[:span]))

    @property
    def name(self) -> str:
        """Returns a name that is unique for file and range. Names sort by file, then by row."""
        return f"{_file_key(self.path, self.digest)}.{self.first:012d}-{self.rows}"

    def describe(self) -> str:
        """Returns the unit in words."""
        return f"rows {self.first:,} to {self.first + self.span:,} of {self.path}"


def sort_files(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """Returns the files in the order of their units' names."""
    return tuple(sorted(files, key=lambda file: _file_key(file.path, file.digest)))


def _file_key(path: str, digest: str) -> str:
    readable = re.sub(r"[^\w=-]", "_", path.rsplit(".", 1)[0], flags=re.ASCII)
    return f"{readable[:_PREFIX_CHARACTERS]}.{digest[:16]}"


def file_format(path: str) -> str | None:
    """Returns parquet, jsonl, json, csv or tsv by the name of a file; None for any other name."""
    return next((name for name, pattern in _FORMATS.items() if pattern.search(path)), None)


Wanted = frozenset[str] | None  # the columns to read in addition to the text columns; None for all


def narrowed(schema: pa.Schema, text_columns: tuple[str, ...], wanted: Wanted) -> pa.Schema:
    """Returns the schema of the columns to read."""
    if wanted is None:
        return schema
    names = wanted | {text_path(schema.names, name)[0] for name in text_columns}
    return pa.schema([field for field in schema if field.name in names], schema.metadata)


def check_wanted(place: str, wanted: Wanted, names: Collection[str]) -> None:
    """Raises UserError if a wanted column is not among the names of a source's columns."""
    missing = sorted((wanted or frozenset()) - set(names))
    if missing:
        raise UserError(f"{place} has no column called {missing[0]}: name some of its columns ({', '.join(names)}).")


def check_names(path: str, schema: pa.Schema, text_columns: tuple[str, ...], wanted: Wanted) -> None:
    """Raises UserError if a text column is missing, if two columns to read share a name, or if one has a name that the
    output adds.
    """
    names = narrowed(schema, text_columns, wanted).names
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"{path} has more than one column called {repeated[0]}: rename all but one.")
    for name in ADDED_COLUMNS:
        if name in names:
            raise UserError(
                f"{path} already has a column called {name}, which the output adds: rename it in the source."
            )
    for name in text_columns:
        if text_type(schema, name) is None:
            raise UserError(
                f"{path} has no column called {name}: "
                f"give --text-column one of its text columns ({_text_columns(schema)})."
            )


def check_text_type(schema: pa.Schema, text_columns: tuple[str, ...]) -> None:
    """Raises UserError if a text column has a type other than text."""
    for name in text_columns:
        kind = text_type(schema, name)
        if kind is None or not (is_text(kind) or is_bytes(kind)):
            raise UserError(
                f"The column {name} holds {kind}, not text: "
                f"give --text-column one of the text columns ({_text_columns(schema)})."
            )


def _text_columns(schema: pa.Schema) -> str:
    return ", ".join(text_columns(schema)) or "there are none"
