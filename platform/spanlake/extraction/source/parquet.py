"""Parquet files as a source: planning from footers, and reading rows."""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.bounds import possible_groups
from spanlake.extraction.source.model import (
    ADDED_COLUMNS,
    BATCH_BYTES,
    BATCH_ROWS,
    ColumnPlaces,
    Constant,
    FileColumn,
    SourceFile,
    SourceReadError,
    Unit,
    Wanted,
    check_names,
    check_text_type,
    check_wanted,
    narrowed,
)
from spanlake.extraction.source.selection import unpack
from spanlake.extraction.source.where import Where
from spanlake.extraction.source.widening import merged
from spanlake.storage import Place

_TAIL_BYTES = 1 << 16  # large enough for most footers
_FOOTERS_AT_ONCE = 16
_BUFFER_BYTES = 4 << 20  # read ahead, for each column
_MOST_NANOSECONDS = (1 << 63) - 1  # from 1970, either way
_UNITS = {"milliseconds": 1_000_000, "microseconds": 1000}  # of times in Parquet, in nanoseconds
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

# --- planning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footer:
    """The metadata of a Parquet file, the digest of its footer (hex SHA-256), and the file size in bytes."""

    metadata: pq.FileMetaData
    schema: pa.Schema
    digest: str
    file_size: int


def read_footer(filesystem: fs.FileSystem, path: str) -> Footer:
    """Returns the footer of a Parquet file, in most cases with one small read.

    Raises UserError for a file that is not Parquet, is cut short, or is encrypted, and OSError if it cannot be read.
    """
    with filesystem.open_input_file(path) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if tail[-4:] == b"PARE":
            raise UserError(f"{path} is an encrypted Parquet file, which cannot be read: decrypt it first.")
        length = int.from_bytes(tail[-8:-4], "little")
        if size < 12 or tail[-4:] != b"PAR1" or length + 12 > size:
            raise UserError(f"{path} is not a whole Parquet file (its footer is missing): replace it or move it away.")
        content = tail[-8 - length : -8] if length + 8 <= len(tail) else file.read_at(length, size - 8 - length)
    try:
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + content + tail[-8:]))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} has a footer that cannot be read ({one_line(error)}).") from error
    return Footer(metadata, schema, sha256(content).hexdigest(), size)


def read_parquet_files(
    root: Place, paths: Sequence[str], text_columns: tuple[str, ...], wanted: Wanted, where: Where | None = None
) -> tuple[list[SourceFile], pa.Schema]:
    """Returns every file, from its footer, and the common schema of the columns to read, with Hive's partitions.

    The files are judged by `where`, so that their footers need not be read again.
    Raises UserError for files that cannot be read (one message says how many there are), for missing columns, and for
    columns without a common type.
    """

    def read(path: str) -> tuple[SourceFile, pa.Schema, dict[str, bool]] | str:
        try:
            footer = read_footer(root.filesystem, root.child(path))
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{root.child(path)} cannot be read ({one_line(error)})."
        return judged(describe_file(path, footer), footer, footer.schema, where), footer.schema, _far_times(footer)

    files: list[SourceFile] = []
    problems: list[str] = []
    schemas: dict[bytes, tuple[str, pa.Schema]] = {}  # the different schemas, each with its first file
    judged_types: list[list[pa.DataType]] = []  # for each file, of the columns of the condition
    far: list[tuple[SourceFile, dict[str, bool]]] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for path, answer in zip(paths, pool.map(read, paths), strict=True):
            if isinstance(answer, str):
                problems.append(answer)
            elif not problems:
                check_names(path, answer[1], text_columns, wanted)
                schemas.setdefault(answer[1].remove_metadata().serialize().to_pybytes(), (path, answer[1]))
                files.append(answer[0])
                judged_types.append(_types(answer[1], where))
                if answer[2]:
                    far.append((answer[0], answer[2]))
    if problems:
        others = f" ({len(problems) - 1:,} more files of the source cannot be read either)" if len(problems) > 1 else ""
        raise UserError(problems[0].rstrip(".") + others + ".")
    common = merged({path: narrowed(schema, text_columns, wanted) for path, schema in schemas.values()})
    check_text_type(common, text_columns)
    _check_times(root, common, far)
    wide = _types(common, where)
    files = [  # statistics in another type say something else
        file if types == wide else replace(file, possible=None) for file, types in zip(files, judged_types, strict=True)
    ]
    partitions = {file.path: _partitions(file.path) for file in files}
    names = dict.fromkeys(name for _, schema in schemas.values() for name in schema.names)
    added = dict.fromkeys(name for found in partitions.values() for name in found if name not in names)
    check_wanted(root.uri, wanted, [*names, *added])
    return _with_partitions(
        root, files, common, partitions, [name for name in added if wanted is None or name in wanted]
    )


def describe_file(path: str, footer: Footer) -> SourceFile:
    """Returns the description of a file from its footer. `path` is relative to the source."""
    groups = [footer.metadata.row_group(index) for index in range(footer.metadata.num_row_groups)]
    return SourceFile(
        path=path,
        size=footer.file_size,
        digest=file_digest(path, footer),
        rows=footer.metadata.num_rows,
        groups=tuple(group.num_rows for group in groups),
        bytes=sum(group.total_byte_size for group in groups),
    )


def judged(file: SourceFile, footer: Footer, schema: pa.Schema, where: Where | None) -> SourceFile:
    """Returns the file with the row groups that may fulfil a condition, if the schema has the columns of the condition.

    `schema` has the types in which the condition reads the columns.
    """
    if where is None or not where.columns <= set(schema.names):
        return file
    try:
        possible = possible_groups(where.condition, schema, file, footer.metadata, footer.schema)
    except (UserError, pa.ArrowException):  # the condition may fit the types of the source
        return file
    return replace(file, possible=possible)


def _types(schema: pa.Schema, where: Where | None) -> list[pa.DataType]:
    return [schema.field(name).type for name in sorted(where.columns) if name in schema.names] if where else []


def file_digest(path: str, footer: Footer) -> str:
    """Returns the identity of a source file (hex), from its relative path, size and footer. A copy has the same."""
    return sha256(f"{path}\n{footer.file_size}\n{footer.digest}".encode()).hexdigest()


def _far_times(footer: Footer) -> dict[str, bool]:
    """Returns the columns of times that nanoseconds may not hold: True if statistics show it, False if there are none.

    Nanoseconds hold the years 1678 to 2261.
    """
    metadata, found = footer.metadata, dict[str, bool]()
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        unit = _UNITS.get(json.loads(column.logical_type.to_json()).get("timeUnit", ""))
        if column.logical_type.type != "TIMESTAMP" or unit is None:
            continue
        name = next((n for n in footer.schema.names if f"{column.path}.".startswith(f"{n}.")), column.path)
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(index)
            ends = chunk.statistics
            if ends is None or not ends.has_min_max:
                if ends is None or ends.null_count != chunk.num_values:
                    found.setdefault(name, False)
            elif max(-ends.min_raw, ends.max_raw) > _MOST_NANOSECONDS // unit:
                found[name] = True
    return found


def _check_times(root: Place, schema: pa.Schema, far: Sequence[tuple[SourceFile, Mapping[str, bool]]]) -> None:
    """Raises UserError for times in a file that do not fit into the nanoseconds of another file.

    Reads the columns of which a file has no statistics.
    """
    for file, columns in far:
        for name in [name for name in columns if name in schema.names and _has_nanoseconds(schema.field(name).type)]:
            beyond = columns[name]
            if not beyond:
                try:
                    deque(ParquetReader(root, pa.schema([schema.field(name)])).read(file.whole()), maxlen=0)
                except SourceReadError as error:
                    beyond = isinstance(error.__cause__, pa.ArrowInvalid)
            if beyond:
                raise UserError(
                    f"The column {name} has times before 1678 or after 2261 in {root.child(file.path)}, and another "
                    "file has it in nanoseconds, which cannot hold them: write it in microseconds in all files."
                )


def _has_nanoseconds(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return bool(kind.unit == "ns")
    return any(_has_nanoseconds(kind.field(index).type) for index in range(kind.num_fields))


def _with_partitions(
    root: Place,
    files: list[SourceFile],
    schema: pa.Schema,
    partitions: Mapping[str, Mapping[str, str | None]],
    names: Sequence[str],
) -> tuple[list[SourceFile], pa.Schema]:
    """Adds the columns of Hive's partitions: a directory `year=2024` gives its rows a column, unless files have one.

    The column is int64 if all its values are whole numbers, otherwise string.
    """
    if not names:
        return files, schema
    for name in names:
        values = [found[name] for found in partitions.values() if found.get(name) is not None]
        kind = pa.int64() if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", str(value)) for value in values) else pa.string()
        schema = schema.append(pa.field(name, kind))
    for name in ADDED_COLUMNS:
        if name in names:
            raise UserError(f"{root.uri} is partitioned by {name}, a column that the output adds: rename it.")

    def constants(path: str) -> dict[str, Constant]:
        return {name: Constant(partitions[path].get(name)) for name in names}

    return [replace(file, columns=constants(file.path)) for file in files], schema


def _partitions(path: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if part.find("=") > 0]
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, value in pairs}


# --- reading ------------------------------------------------------------------------------------------------------


def open_streamed(source: pa.NativeFile, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a Parquet file that is read in a few MiB for each column.

    By default, pyarrow keeps everything that it has read until the file is closed.
    """
    return pq.ParquetFile(
        source, metadata=metadata, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )


class RowReader:
    """Reads units of one source.

    If a unit follows the last one in its file, reading continues from there. So units in one large row group do not
    decode it from its start each time.
    """

    def __init__(self, root: Place, columns: Sequence[str] | None = None) -> None:
        """`columns` of the source are read if a file has them; None reads all."""
        self._root = root
        self._columns = columns
        self._names: list[str] | None = None  # of the columns to read in the current file
        self._file: pq.ParquetFile | None = None
        self._digest = ""
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._held: pa.RecordBatch | None = None  # read but not yet returned
        self._next_row = 0  # the number in the file of the next row, held or not

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a unit in order, with the columns of its file.

        The batches are the same whatever was read before, because the last bits of scores depend on which rows are in
        a batch.
        Raises SourceReadError. After that, the reader can still read other units.
        """
        try:
            if self._digest != unit.digest:
                self._open(unit)
            yield from self._kept_rows(unit) if unit.kept else self._all_rows(unit)
        except (OSError, UserError, pa.ArrowException) as error:
            self.close()
            raise SourceReadError(f"{unit.describe()} cannot be read ({one_line(error)})") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close(force=True)
        self._file, self._digest = None, ""
        self._batches, self._held, self._next_row = None, None, 0

    def _all_rows(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        assert self._file is not None
        last = unit.first + unit.rows
        if unit.rows:
            self._seek(unit.first)
        while self._next_row < last:
            yield self._take_all(min(batch_rows(self._file.metadata, BATCH_ROWS), last - self._next_row))

    def _kept_rows(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yields batches with as many rows as other units have. Row groups without kept rows are not read."""
        assert self._file is not None
        mask, limit = np.trim_zeros(unpack(unit.kept), "b"), batch_rows(self._file.metadata, BATCH_ROWS)
        waiting: list[pa.RecordBatch] = []
        done = 0  # rows of the mask
        while done < len(mask):
            done += int(mask[done:].argmax())  # to the next kept row
            self._seek(unit.first + done)
            count = int(np.flatnonzero(mask[done : done + limit])[-1]) + 1
            part = _without_views(self._take_all(count)).filter(pa.array(mask[done : done + count]))
            done += count
            if sum(batch.num_rows for batch in waiting) + part.num_rows > limit:
                yield pa.concat_batches(waiting)
                waiting = []
            waiting.append(part)
        if waiting:
            yield pa.concat_batches(waiting)

    def _seek(self, row: int) -> None:
        group, group_first = self._group_of(row)
        if self._batches is None or not group_first <= self._next_row <= row:
            self._read_from(group, group_first)
        while self._next_row < row:
            self._take(row - self._next_row)  # rows of the group that belong to other units

    def _open(self, unit: Unit) -> None:
        self.close()
        path = self._root.child(unit.path)
        footer = read_footer(self._root.filesystem, path)
        if file_digest(unit.path, footer) != unit.digest:
            raise UserError("the file has changed since it was planned")
        self._file = open_streamed(self._root.filesystem.open_input_file(path), footer.metadata)
        self._digest = unit.digest
        self._names = None if self._columns is None else _names(unit.columns, self._columns)

    def _group_of(self, row: int) -> tuple[int, int]:
        """Returns the row group of a row, and the first row of the group."""
        assert self._file is not None
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            stop = first + self._file.metadata.row_group(group).num_rows
            if row < stop:
                return group, first
            first = stop
        raise UserError(f"the file ends before row {row:,}")

    def _read_from(self, group: int, group_first: int) -> None:
        assert self._file is not None
        groups = list(range(group, self._file.metadata.num_row_groups))
        self._batches = self._file.iter_batches(
            batch_rows(self._file.metadata, BATCH_ROWS), row_groups=groups, columns=self._names, use_threads=False
        )
        self._held, self._next_row = None, group_first

    def _take_all(self, count: int) -> pa.RecordBatch:
        """Returns the next `count` rows."""
        parts = [self._take(count)]
        while missing := count - sum(part.num_rows for part in parts):
            parts.append(self._take(missing))
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def _take(self, limit: int) -> pa.RecordBatch:
        """Returns up to `limit` next rows. The rest of the batch is held for the next call."""
        batch = self._held
        if batch is None and self._batches is not None:
            batch = next(self._batches, None)
        if batch is None:
            raise UserError(f"the file ends before row {self._next_row:,}")
        self._held = batch.slice(limit) if batch.num_rows > limit else None
        self._next_row += min(limit, batch.num_rows)
        return batch.slice(0, limit)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with plain strings and bytes in place of views, which Arrow cannot filter."""
    return batch.cast(pa.schema([field.with_type(_plain_of_view(field.type)) for field in batch.schema]))


def _plain_of_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_of_view(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_of_view(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_of_view(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_plain_of_view(kind.key_type), _plain_of_view(kind.item_type))
    return kind


def batch_rows(metadata: pq.FileMetaData, most: int) -> int:
    """Returns the rows of a batch: `most`, or fewer if rows are large."""
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(most, BATCH_BYTES * metadata.num_rows // max(1, size)))


def _names(places: ColumnPlaces, columns: Sequence[str]) -> list[str]:
    """Returns the names of the columns in a file."""
    found = [places.get(column, FileColumn(column)) for column in columns]
    return [place.name for place in found if isinstance(place, FileColumn)]


class ParquetReader:
    """Reads units of Parquet files with the columns of the source. A column that a file lacks is null."""

    def __init__(self, root: Place, schema: pa.Schema) -> None:
        self._rows = RowReader(root, schema.names)
        self._schema = schema

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a unit in order. Raises SourceReadError; after that, other units can still be read."""
        for batch in self._rows.read(unit):
            try:
                arrays = [_column(batch, field, unit.columns.get(field.name)) for field in self._schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)
            except pa.ArrowException as error:
                raise SourceReadError(
                    f"{unit.describe()} do not fit the source's columns ({one_line(error)})"
                ) from error


def _column(batch: pa.RecordBatch, column: pa.Field, place: FileColumn | Constant | None) -> pa.Array:
    """Returns a column of the source, from `place` or, without one, under its own name."""
    if isinstance(place, Constant):
        value = pa.array([place.value], pa.string()).cast(column.type)
        return pc.take(value, pa.array([0] * batch.num_rows, pa.int64()))
    name = place.name if place else column.name
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, column.type)
    values = batch.column(name)
    return values if values.type == column.type else values.cast(column.type)
