"""From a source to units of work, by footers alone: no row is read here."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.store import Footer, Place, list_files, locate, read_footer
from spanlake.extraction.texts import is_bytes, is_text, text_columns, text_type

UNIT_ROWS = 2048  # rows of a unit in a large source, where the caller asks for nothing else
SMALL_UNIT_ROWS = 64  # in a small one, so that several workers have something to do
UNIT_BYTES = 256 << 20  # and at most so many bytes of it, uncompressed
_COMPRESSED = r"(\.(gz|bz2|zst))?$"
_FORMATS = {
    "parquet": re.compile(r"\.(parquet|parq|pq)$"),
    "jsonl": re.compile(r"\.(jsonl|ndjson)" + _COMPRESSED),
    "csv": re.compile(r"\.csv" + _COMPRESSED),
    "tsv": re.compile(r"\.tsv" + _COMPRESSED),
}
ADDED_COLUMNS = ("entities", "error")

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOOTERS_AT_ONCE = 16
_PREFIX_CHARACTERS = 100
_PLAN_SCHEMA = pa.schema(
    [
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("size", pa.int64()),
        ("digest", pa.dictionary(pa.int32(), pa.string())),
        ("first", pa.int64()),
        ("rows", pa.int64()),
        ("columns", pa.dictionary(pa.int32(), pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Parquet file. `path` is relative to the source; `digest` (hex) changes when path, size or footer do."""

    path: str
    size: int
    digest: str
    rows: int
    groups: tuple[int, ...]  # rows of each row group
    bytes: int  # of its columns, uncompressed
    columns: str = ""  # where those come from that do not stand in the file under their names (see tables.py)


@dataclass(frozen=True)
class Source:
    """Files in the order of their units' names, below the directory `root`, and the schema that fits them all."""

    uri: str
    root: Place
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    ignored: tuple[str, ...]  # paths in the directory that are not Parquet by name
    deep: bool  # whether files anywhere below the root belong to it
    format: str = "parquet"  # or jsonl, csv, tsv, table

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows `first` to `first + rows` of one source file: what is read, committed and counted as one."""

    path: str
    size: int
    digest: str
    first: int
    rows: int
    columns: str = ""  # as of its file

    @property
    def name(self) -> str:
        """Unique to the file's identity and the range; names sort by file, then by row."""
        return f"{_file_key(self.path, self.digest)}.{self.first:012d}-{self.rows}"

    def describe(self) -> str:
        """The unit in words."""
        return f"rows {self.first:,} to {self.first + self.rows:,} of {self.path}"


def _file_key(path: str, digest: str) -> str:
    readable = re.sub(r"[^\w=-]", "_", path.rsplit(".", 1)[0], flags=re.ASCII)
    return f"{readable[:_PREFIX_CHARACTERS]}.{digest[:16]}"


# --- reading the source -------------------------------------------------------------------------------------------


def read_source(uri: str, text_column: str) -> Source:
    """Find the files of a source and read their footers.

    Raises: UserError for a source that is missing, empty or unreadable, files that do not fit together, a text column
    that is missing or holds no text, and columns with a name that the output needs.
    """
    from spanlake.extraction.tables import TableName, read_table  # which builds on this module

    if table := TableName.parse(uri):
        return read_table(table, text_column)
    found = _find(locate(uri))
    if not found.paths:
        raise UserError(
            f"{found.root.uri} holds no file to read (one whose name ends in .parquet, .parq, .pq, "
            ".jsonl, .ndjson, .csv or .tsv)."
        )
    if found.format == "parquet":
        files, schema = _with_partitions(found.root, *_read_files(found.root, found.paths, text_column))
    else:
        from spanlake.extraction.lines import read_line_files  # which builds on this module

        files, schema = read_line_files(found.root, found.paths, text_column)
        check_names(found.root.uri, schema, text_column)
    ignored = tuple(found.ignored)
    return Source(found.root.uri, found.root, sort_files(files), schema, ignored, found.deep, found.format)


def sort_files(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """In the order of their units' names."""
    return tuple(sorted(files, key=lambda file: _file_key(file.path, file.digest)))


class _Found(NamedTuple):
    root: Place
    paths: list[str]  # sorted, relative to the root
    ignored: list[str]
    deep: bool
    format: str


def file_format(path: str) -> str | None:
    """parquet, jsonl, csv or tsv, by the name of a file; None for any other."""
    return next((name for name, pattern in _FORMATS.items() if pattern.search(path)), None)


def _find(place: Place) -> _Found:
    kind = _kind(place)
    if kind == fs.FileType.File:
        parent, _, name = place.path.rpartition("/")
        chosen = file_format(name) or "parquet"
        return _Found(Place(place.uri, place.filesystem, parent or "/"), [name], [], False, chosen)
    if kind == fs.FileType.Directory:
        paths = _visible_files(place)
        chosen = _format(place, [path for path in paths if file_format(path)])
        read = [path for path in paths if file_format(path) == chosen]
        return _Found(place, read, [path for path in paths if file_format(path) != chosen], True, chosen)
    if not re.search(r"[*?\[]", place.path):
        raise UserError(f"{place.uri} does not exist: give a Parquet file, a directory of them, or a glob.")
    return _find_glob(place)


def _find_glob(place: Place) -> _Found:
    fixed = re.split(r"[^/]*[*?\[]", place.path, maxsplit=1)[0]  # the directories before the first wildcard
    pattern = place.path[len(fixed) :]
    root = Place(place.uri, place.filesystem, fixed.rstrip("/") or "/")
    matches = re.compile(glob_translate(pattern)).match
    paths = [path for path in _visible_files(root) if matches(path)]
    if not paths:
        raise UserError(f"{place.uri} matches no file: give a Parquet file, a directory of them, or a glob.")
    return _Found(root, paths, [], "**" in pattern, _format(root, paths))


def _format(root: Place, paths: list[str]) -> str:
    """Parquet, if any of the files is; else the one format that they have."""
    formats = {file_format(path) for path in paths} or {"parquet"}
    if len(formats) > 1 and not formats & {"parquet", None}:
        names = ", ".join(sorted(filter(None, formats)))
        raise UserError(f"{root.uri} holds files of several formats ({names}): choose those of one by a glob (*.csv).")
    return "parquet" if formats & {"parquet", None} else str(formats.pop())


def _kind(place: Place) -> fs.FileType:
    try:
        return place.kind()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place.uri} cannot be reached ({one_line(error)}).") from error


def _visible_files(root: Place) -> list[str]:
    """Paths, relative to the root, of all files below it but those in or with a name that begins with _ or a dot."""
    try:
        found = list_files(root, recursive=True)
    except OSError as error:
        raise UserError(f"{root.uri} cannot be listed ({one_line(error)}).") from error
    start = len(root.path.rstrip("/")) + 1
    paths = sorted(info.path[start:] for info in found if info.type == fs.FileType.File)
    return [path for path in paths if not any(part.startswith(("_", ".")) for part in path.split("/"))]


def _read_files(root: Place, paths: Sequence[str], text_column: str) -> tuple[list[SourceFile], pa.Schema]:
    """Every file by its footer, and their common schema; one message says how many files cannot be read."""

    def read(path: str) -> tuple[SourceFile, pa.Schema] | str:
        try:
            footer = read_footer(root.filesystem, root.child(path))
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{root.child(path)} cannot be read ({one_line(error)})."
        return describe_file(path, footer), footer.schema

    files: list[SourceFile] = []
    problems: list[str] = []
    common: pa.Schema | None = None
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for path, answer in zip(paths, pool.map(read, paths), strict=True):
            if isinstance(answer, str):
                problems.append(answer)
            elif not problems:
                check_names(path, answer[1], text_column)
                common = answer[1] if common is None else _merge(common, answer[1], path, paths[0])
                files.append(answer[0])
    if problems:
        others = f" ({len(problems) - 1:,} more files of the source cannot be read either)" if len(problems) > 1 else ""
        raise UserError(problems[0].rstrip(".") + others + ".")
    assert common is not None  # there is at least one file
    check_text_type(common, text_column)
    return files, common


def describe_file(path: str, footer: Footer) -> SourceFile:
    """What a footer says of a file at a path relative to its source."""
    groups = [footer.metadata.row_group(index) for index in range(footer.metadata.num_row_groups)]
    return SourceFile(
        path=path,
        size=footer.file_size,
        digest=file_digest(path, footer),
        rows=footer.metadata.num_rows,
        groups=tuple(group.num_rows for group in groups),
        bytes=sum(group.total_byte_size for group in groups),
    )


def file_digest(path: str, footer: Footer) -> str:
    """The identity of a source file (hex): its relative path, size and footer. A copy elsewhere keeps it."""
    return sha256(f"{path}\n{footer.file_size}\n{footer.digest}".encode()).hexdigest()


def _with_partitions(root: Place, files: list[SourceFile], schema: pa.Schema) -> tuple[list[SourceFile], pa.Schema]:
    """Hive's partitions: a directory `year=2024` gives the rows below it a column, where files have none of the name.

    It is int64 if all its values are whole numbers, and a string otherwise.
    """
    partitions = {file.path: _partitions(file.path) for file in files}
    names = dict.fromkeys(name for found in partitions.values() for name in found if name not in schema.names)
    if not names:
        return files, schema
    for name in names:
        values = [found[name] for found in partitions.values() if found.get(name) is not None]
        kind = pa.int64() if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", str(value)) for value in values) else pa.string()
        schema = schema.append(pa.field(name, kind))
    for name in ADDED_COLUMNS:
        if name in names:
            raise UserError(f"{root.uri} is partitioned by {name}, a column that the output adds: rename it.")

    def columns(path: str) -> str:
        return json.dumps({name: {"value": partitions[path].get(name)} for name in names}, ensure_ascii=False)

    return [replace(file, columns=columns(file.path)) for file in files], schema


def _partitions(path: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if part.find("=") > 0]
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, value in pairs}


# --- the schema ---------------------------------------------------------------------------------------------------


def check_names(path: str, schema: pa.Schema, text_column: str) -> None:
    """Raises: UserError where the text column is missing, a name stands twice, or the output needs it."""
    names = schema.names
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"{path} has more than one column called {repeated[0]}: rename all but one.")
    for name in ADDED_COLUMNS:
        if name in names:
            raise UserError(
                f"{path} already has a column called {name}, which the output adds: rename it in the source."
            )
    if text_type(schema, text_column) is None:
        raise UserError(
            f"{path} has no column called {text_column}: "
            f"give --text-column one of its text columns ({_text_columns(schema)})."
        )


def check_text_type(schema: pa.Schema, text_column: str) -> None:
    """Raises: UserError where the column holds no text."""
    kind = text_type(schema, text_column)
    if kind is None or not (is_text(kind) or is_bytes(kind)):
        raise UserError(
            f"The column {text_column} holds {kind}, not text: "
            f"give --text-column one of the text columns ({_text_columns(schema)})."
        )


def _text_columns(schema: pa.Schema) -> str:
    return ", ".join(text_columns(schema)) or "there are none"


def _merge(common: pa.Schema, schema: pa.Schema, path: str, first_path: str) -> pa.Schema:
    """One schema for both: a column that a file lacks, or has without any value, is null in its rows."""
    if common.equals(schema):
        return common
    try:
        return pa.unify_schemas([common, schema])
    except pa.ArrowException as error:
        for field in schema:
            known = common.field(field.name).type if field.name in common.names else field.type
            if known != field.type and not pa.types.is_null(known) and not pa.types.is_null(field.type):
                raise UserError(
                    f"The column {field.name} is {known} in {first_path} and {field.type} in {path}: "
                    "give both one type, or extract them to two outputs."
                ) from error
        raise UserError(f"{path} and {first_path} have columns that do not fit ({one_line(error)}).") from error


# --- cutting ------------------------------------------------------------------------------------------------------


def default_unit_rows(source_rows: int) -> int:
    """Rows of a unit such that even a small source has tens of them."""
    return min(UNIT_ROWS, max(SMALL_UNIT_ROWS, source_rows // 64))


def cut(file: SourceFile, unit_rows: int) -> Iterator[Unit]:
    """The units of one file, in order. They hold each of its rows once; a file without rows is one unit of none.

    Whole row groups go together while they fit in `unit_rows` (fewer where rows are large); a larger one is cut evenly.
    """
    limit = min(unit_rows, max(1, UNIT_BYTES * file.rows // max(1, file.bytes))) if file.rows else unit_rows
    first = 0
    for rows in _pieces(file.groups, limit) if file.rows else [0]:
        yield Unit(file.path, file.size, file.digest, first, rows, file.columns)
        first += rows


def _pieces(groups: Iterable[int], limit: int) -> Iterator[int]:
    held = 0
    for group in groups:
        if held and held + group > limit:
            yield held
            held = 0
        held += group
        if held > limit:  # one group, too large by itself
            count = -(-held // limit)
            yield from (held * (index + 1) // count - held * index // count for index in range(count))
            held = 0
    if held:
        yield held


def plan_table(units: Iterable[Unit]) -> pa.Table:
    """Units as a table, a few tens of bytes each, so that millions of them can be held."""
    columns: dict[str, list] = {name: [] for name in _PLAN_SCHEMA.names}
    for unit in units:
        for name, values in columns.items():
            values.append(getattr(unit, name))
    return pa.table(columns, schema=_PLAN_SCHEMA)


def units_of(table: pa.Table) -> Iterator[Unit]:
    """The units that a plan table (or a part of one) holds, in its order."""
    for batch in table.to_batches(max_chunksize=4096):
        columns = [batch.column(name).to_pylist() for name in _PLAN_SCHEMA.names]
        yield from (Unit(*values) for values in zip(*columns, strict=True))


def files_of(table: pa.Table) -> Iterator[tuple[Unit, int]]:
    """For each file of a plan: its first unit, and the rows of all its units."""
    for _, group in groupby(units_of(table), key=lambda unit: unit.path):
        units = list(group)
        yield units[0], sum(unit.rows for unit in units)
