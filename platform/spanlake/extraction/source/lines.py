"""JSON lines and CSV as sources: their rows, the types of their columns, and reading them in ranges.

Only the lines themselves tell how many rows there are, so planning reads each file once. A line that cannot be read is
still a row: its columns are null, and READ_ERROR says why.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, repeat
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.model import BATCH_BYTES, BATCH_ROWS, SourceFile, SourceReadError, Unit
from spanlake.extraction.source.selection import unpack
from spanlake.extraction.source.texts import READ_ERROR, located
from spanlake.storage import Place
from spanlake.text import replace_surrogates

_FIELD_CHARACTERS = (
    1 << 28
)  # of one CSV field: a quote that is never closed must not take the rest of a large file into memory
_BUFFER_BYTES = 1 << 20
_DEPTH = 100  # of JSON inside JSON
_EXACT = 1 << 53  # a float holds every integer up to here
_JSON = {b"spanlake": b"json"}  # of a column that holds the JSON of each value
# The first line of a file that is one JSON document.
_DOCUMENT = re.compile(rb"\s*(\[\s*(\{.*|\]\s*)?|\{\s*)", re.DOTALL)


class Record(NamedTuple):
    """One row by column, or the reason why the line is not a row; and its size in characters or bytes."""

    values: dict[str, Any]
    error: str | None
    size: int


# --- planning -----------------------------------------------------------------------------------------------------


@dataclass
class Columns:
    """The kinds of value in each column, in the order in which columns appear."""

    text_columns: tuple[str, ...]
    kinds: dict[str, set[str]] = field(default_factory=dict)

    def add(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.kinds.setdefault(name, set()).add(_kind(value))

    def schema(self) -> pa.Schema:
        """Returns the type of each column.

        It is string, int64, double or bool if all values are of that kind. Otherwise, it is a string with the JSON of
        each value. A text column is always a string.
        """
        if not self.kinds:
            return pa.schema([(name, pa.string()) for name in self.text_columns])
        return pa.schema([self._field(name, kinds - {"null"}) for name, kinds in self.kinds.items()])

    def _field(self, name: str, kinds: set[str]) -> pa.Field:
        if kinds <= {"str"} or name in self.text_columns:
            return pa.field(name, pa.string())
        if kinds == {"bool"}:
            return pa.field(name, pa.bool_())
        if kinds <= {"int", "long"}:
            return pa.field(name, pa.int64())
        if kinds <= {"int", "float"}:
            return pa.field(name, pa.float64())
        return pa.field(name, pa.string(), metadata=_JSON)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= _EXACT else "long" if -(1 << 63) <= value < 1 << 63 else "json"
    return {float: "float", str: "str"}.get(type(value), "json")


def read_line_files(
    root: Place, paths: Iterable[str], line_format: str, text_columns: tuple[str, ...]
) -> tuple[list[SourceFile], pa.Schema]:
    """Reads every file once, and returns the files and their common schema. The format is jsonl, json, csv or tsv.

    Raises UserError for a file that cannot be read, for JSON that is one document, and for a CSV header that does not
    name its columns.
    """
    columns = Columns(text_columns)
    files = [_read_file(root, path, line_format, columns) for path in paths]
    return files, columns.schema()


def _read_file(root: Place, path: str, line_format: str, columns: Columns) -> SourceFile:
    digest, rows, size = sha256(), 0, 0
    try:
        file_size = root.filesystem.get_file_info(root.child(path)).size
        columns.add(dict.fromkeys(_header(root, path, line_format)))
        for record in _records(root, path, line_format, digest):
            columns.add(record.values)
            rows += 1
            size += record.size
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{root.child(path)} cannot be read ({one_line(error)}).") from error
    identity = sha256(f"{path}\n{file_size}\n{digest.hexdigest()}".encode()).hexdigest()
    return SourceFile(path=path, size=file_size, digest=identity, rows=rows, groups=(rows,), bytes=size)


# --- reading ------------------------------------------------------------------------------------------------------


class LineReader:
    """Reads units of one source. If a unit follows the last one in its file, reading continues from there."""

    def __init__(self, root: Place, line_format: str, schema: pa.Schema, text_columns: tuple[str, ...]) -> None:
        self._root = root
        self._format = line_format
        self._schema = schema
        self._text_columns = text_columns
        self._digest = ""
        self._records: Iterator[Record] = iter(())
        self._next_row = 0

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a unit in order, with the columns of the source and READ_ERROR.

        Raises SourceReadError. After that, the reader can still read other units.
        """
        try:
            yield from self._batches(unit)
        except (OSError, UserError, pa.ArrowException) as error:
            self.close()
            raise SourceReadError(f"{unit.describe()} cannot be read ({one_line(error)})") from error

    def close(self) -> None:
        self._digest, self._records, self._next_row = "", iter(()), 0

    def _batches(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        if self._digest != unit.digest or self._next_row > unit.first:
            self._open(unit)
        for _ in islice(self._records, unit.first - self._next_row):
            self._next_row += 1
        kept = self._kept(unit)
        while held := list(_limited(islice(kept, BATCH_ROWS))):
            yield self._batch(held)

    def _kept(self, unit: Unit) -> Iterator[Record]:
        """Yields the records of a unit that begins with the next row of the file."""
        for keep in unpack(unit.kept) if unit.kept else repeat(True, unit.rows):
            record = next(self._records, None)
            if record is None:
                raise UserError(f"the file ends before row {self._next_row:,}")
            self._next_row += 1
            if keep:
                yield record

    def _open(self, unit: Unit) -> None:
        self.close()
        if self._root.filesystem.get_file_info(self._root.child(unit.path)).size != unit.size:
            raise UserError("the file has changed since it was planned")
        self._records = _records(self._root, unit.path, self._format)
        self._digest = unit.digest

    def _batch(self, records: list[Record]) -> pa.RecordBatch:
        errors = [record.error or self._misfit(record) for record in records]
        arrays = [pa.array([_fitted(record.values.get(f.name), f) for record in records], f.type) for f in self._schema]
        return pa.RecordBatch.from_arrays([*arrays, pa.array(errors, pa.string())], [*self._schema.names, READ_ERROR])

    def _misfit(self, record: Record) -> str | None:
        for name in self._text_columns:
            text = record.values.get(name)
            if text is not None and not isinstance(text, str):
                return located(name, f"text is not a string but the JSON {_as_json(text)[:40]}", self._text_columns)
        return None


def _limited(records: Iterable[Record]) -> Iterator[Record]:
    """Yields as many records as fit into one batch."""
    size = 0
    for record in records:
        yield record
        size += record.size
        if size >= BATCH_BYTES:
            return


def _fitted(value: Any, column: pa.Field) -> Any:
    as_json = column.metadata == _JSON or (pa.types.is_string(column.type) and not isinstance(value, str))
    return _as_json(value) if as_json and value is not None else value


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- records ------------------------------------------------------------------------------------------------------


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _records(root: Place, path: str, line_format: str, digest: _Digest | None = None) -> Iterator[Record]:
    """Yields the rows of a file in order, without blank lines. Adds everything it reads to the digest."""
    with root.filesystem.open_input_stream(root.child(path), compression="detect") as stream:
        lines = _lines(stream, digest)
        if line_format in ("jsonl", "json"):
            yield from _json_records(lines, root.child(path))
        else:
            yield from _csv_records(lines, line_format)


def _lines(stream: pa.NativeFile, digest: _Digest | None) -> Iterator[bytes]:
    """Yields each line with its line break, without a byte order mark at the beginning of the file."""
    for number, line in enumerate(io.BufferedReader(stream, _BUFFER_BYTES)):
        if digest:
            digest.update(line)
        yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def _json_records(lines: Iterable[bytes], place: str) -> Iterator[Record]:
    written = (line for line in lines if line.strip())
    for number, line in enumerate(written):
        if number == 0 and _DOCUMENT.fullmatch(line):
            command = "jq -c '.[]'" if line.strip().startswith(b"[") else "jq -c ."
            raise UserError(
                f"{place} is one JSON document over all of its lines, not JSON lines: "
                f"write each row as an object on a line of its own, as `{command} {place}` does."
            )
        yield _json_record(line)


def _json_record(line: bytes) -> Record:
    try:
        values = json.loads(line.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return Record({}, f"line is not valid UTF-8 (byte {error.start})", len(line))
    except (ValueError, RecursionError) as error:
        return Record({}, f"line is not JSON ({one_line(error)})", len(line))
    if not isinstance(values, dict):
        return Record({}, "line is JSON but not an object", len(line))
    if line.count(b"[") + line.count(b"{") > _DEPTH and _deeper(values, _DEPTH):
        return Record({}, f"line is JSON nested deeper than {_DEPTH}", len(line))
    return Record(_without_surrogates(values) if b"\\u" in line else values, None, len(line))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a name twice")
    return values


def _deeper(value: Any, limit: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return limit == 0 or any(_deeper(item, limit - 1) for item in inside)


def _without_surrogates(value: Any) -> Any:
    """Returns the value with U+FFFD for each lone surrogate, which JSON can express and UTF-8 cannot."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, dict):
        return {replace_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value


def _header(root: Place, path: str, line_format: str) -> list[str]:
    """Returns the columns in the header of a file; none for JSON, where each line names its own."""
    if line_format in ("jsonl", "json"):
        return []
    with root.filesystem.open_input_stream(root.child(path), compression="detect") as stream:
        try:
            names = next(_csv_reader(_lines(stream, None), line_format), [])
        except csv.Error as error:
            raise UserError(f"{root.child(path)} has a first line that is not CSV ({one_line(error)}).") from error
    for name in names:
        if not name.strip() or replace_surrogates(name) != name:
            raise UserError(f"{root.child(path)} has a column without a readable name: give it one in the first line.")
        if names.count(name) > 1:
            raise UserError(f"{root.child(path)} has more than one column called {name}: rename all but one.")
    return names


def _csv_reader(lines: Iterable[bytes], line_format: str) -> Iterator[list[str]]:
    csv.field_size_limit(_FIELD_CHARACTERS)
    texts = (line.decode("utf-8", "surrogateescape") for line in lines)
    return csv.reader(texts, delimiter="\t" if line_format == "tsv" else ",", strict=True)


def _csv_records(lines: Iterable[bytes], line_format: str) -> Iterator[Record]:
    reader = _csv_reader(lines, line_format)
    names = next(reader, [])
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Record({}, f"line is not CSV ({one_line(error)})", 0)
            continue
        if fields is None:
            return
        if fields:
            yield _csv_record(names, fields)


def _csv_record(names: list[str], fields: list[str]) -> Record:
    size = sum(map(len, fields))
    if len(fields) != len(names):
        return Record({}, f"line has {len(fields)} fields where the header has {len(names)}", size)
    if any(replace_surrogates(field) != field for field in fields):
        return Record({}, "line is not valid UTF-8", size)
    return Record(dict(zip(names, fields, strict=True)), None, size)
