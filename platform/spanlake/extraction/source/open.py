"""Opens sources by their names: finds and plans files, and opens readers for their units."""

import codecs
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.lines import LineReader, read_line_files
from spanlake.extraction.source.model import (
    Source,
    Unit,
    Wanted,
    check_names,
    check_wanted,
    file_format,
    narrowed,
    sort_files,
)
from spanlake.extraction.source.parquet import ParquetReader, read_parquet_files
from spanlake.extraction.source.tables import TableName, read_table
from spanlake.extraction.source.where import Where
from spanlake.storage import Place, locate

_START_BYTES = 1 << 10  # of a file, which show its format if its name does not
_FILES_AT_ONCE = 16


def read_source(uri: str, text_columns: tuple[str, ...], wanted: Wanted = None, where: Where | None = None) -> Source:
    """Finds the files of a source and reads their footers. The schema has the wanted columns and the text columns.

    `where` is a condition for which row groups are judged from the footers. It does not choose rows.

    Raises UserError for a source that is missing, empty or unreadable, for files that do not fit together, for a text
    column that is missing or of another type, for a missing wanted column, and for names that the output adds.
    """
    if table := TableName.parse(uri):
        return read_table(table, text_columns, wanted, where)
    found = _find(locate(uri))
    if not found.paths:
        raise UserError(
            f"{found.root.uri} holds no file to read (one whose name ends in .parquet, .parq, .pq, "
            ".jsonl, .ndjson, .json, .csv or .tsv)."
        )
    if found.format == "parquet":
        files, schema = read_parquet_files(found.root, found.paths, text_columns, wanted, where)
    else:
        files, schema = read_line_files(found.root, found.paths, found.format, text_columns)
        check_names(found.root.uri, schema, text_columns, wanted)
        check_wanted(found.root.uri, wanted, schema.names)
        schema = narrowed(schema, text_columns, wanted)
    ignored = tuple(found.ignored)
    return Source(found.root.uri, found.root, sort_files(files), schema, ignored, found.deep, found.format)


class _Found(NamedTuple):
    root: Place
    paths: list[str]  # sorted, relative to the root
    ignored: list[str]
    deep: bool
    format: str


def _find(place: Place) -> _Found:
    kind = _kind(place)
    if kind == fs.FileType.File:
        parent, _, name = place.path.rpartition("/")
        root = Place(place.uri, place.filesystem, parent or "/")
        return _Found(root, [name], [], False, file_format(name) or _content_format(root, name) or "parquet")
    if kind == fs.FileType.Directory:
        paths, hidden = _files(place)
        return _found(place, {path: file_format(path) for path in paths}, hidden, deep=True)
    if not re.search(r"[*?\[]", place.path):
        raise UserError(f"{place.uri} does not exist: give a Parquet file, a directory of them, or a glob.")
    return _find_glob(place)


def _find_glob(place: Place) -> _Found:
    fixed = re.split(r"[^/]*[*?\[]", place.path, maxsplit=1)[0]  # the directories before the first wildcard
    pattern = place.path[len(fixed) :]
    root = Place(place.uri, place.filesystem, fixed.rstrip("/") or "/")
    matches = re.compile(glob_translate(pattern)).match
    paths, hidden = ([path for path in listed if matches(path)] for listed in _files(root))
    if not paths:
        raise UserError(f"{place.uri} matches no file: give a Parquet file, a directory of them, or a glob.")
    formats = {path: file_format(path) for path in paths}
    unnamed = [path for path, found in formats.items() if found is None]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        formats |= zip(unnamed, pool.map(partial(_content_format, root), unnamed), strict=True)
    return _found(root, formats, hidden, deep="**" in pattern)


def _found(root: Place, formats: Mapping[str, str | None], hidden: list[str], *, deep: bool) -> _Found:
    """Returns the files of one format: Parquet, otherwise the only line format, otherwise JSON."""
    there = set(filter(None, formats.values()))
    of_lines = there - {"parquet", "json"}
    if "parquet" not in there and len(of_lines) > 1:
        names = ", ".join(sorted(of_lines))
        raise UserError(
            f"{root.uri} holds files of several formats ({names}): choose one format with a glob such as *.csv."
        )
    chosen = "parquet" if "parquet" in there else next(iter(of_lines), "json")
    read = [path for path, found in formats.items() if found == chosen]
    return _Found(root, read, [*(path for path in formats if formats[path] != chosen), *hidden], deep, chosen)


def _content_format(root: Place, path: str) -> str | None:
    """Returns parquet or jsonl by the first bytes of a file; None for anything else.

    Raises UserError if the file cannot be read.
    """
    try:
        with root.filesystem.open_input_stream(root.child(path), compression="detect") as stream:
            start = stream.read(_START_BYTES)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{root.child(path)} cannot be read ({one_line(error)}).") from error
    if start.startswith((b"PAR1", b"PARE")):
        return "parquet"
    return "jsonl" if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")) else None


def _kind(place: Place) -> fs.FileType:
    try:
        return place.kind()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place.uri} cannot be reached ({one_line(error)}).") from error


def _files(root: Place) -> tuple[list[str], list[str]]:
    """Returns the paths of all files below the root, relative to it: visible files, and hidden files.

    A file is hidden if a part of its path begins with _ or a dot. A part with = in it, such as _year=2024, is a
    partition and does not hide the file.
    """
    try:
        found = root.list(recursive=True)
    except OSError as error:
        raise UserError(f"{root.uri} cannot be listed ({one_line(error)}).") from error
    start = len(root.path.rstrip("/")) + 1
    paths = sorted(info.path[start:] for info in found if info.type == fs.FileType.File)
    hidden = {path for path in paths if any(_hides(part) for part in path.split("/"))}
    return [path for path in paths if path not in hidden], sorted(hidden)


def _hides(part: str) -> bool:
    return part.startswith(("_", ".")) and "=" not in part


# --- reading ------------------------------------------------------------------------------------------------------


class UnitReader(Protocol):
    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a unit in order. Raises SourceReadError; after that, other units can still be read."""
        ...


@dataclass(frozen=True)
class SourceHandle:
    """What a worker needs to read units of a source."""

    root: Place  # paths of units are relative to this directory
    format: str
    schema: pa.Schema
    text_columns: tuple[str, ...]

    @staticmethod
    def of(source: Source, text_columns: tuple[str, ...], columns: Collection[str] | None = None) -> "SourceHandle":
        """Returns the handle of a source. `columns` are read in addition to the text columns; None reads all."""
        wanted = None if columns is None else frozenset(columns)
        return SourceHandle(source.root, source.format, narrowed(source.schema, text_columns, wanted), text_columns)

    def open(self) -> UnitReader:
        if self.format in ("parquet", "table"):
            return ParquetReader(self.root, self.schema)
        return LineReader(self.root, self.format, self.schema, self.text_columns)
