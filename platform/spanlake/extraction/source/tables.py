"""Delta Lake and Apache Iceberg tables as sources: the Parquet files of one snapshot, as listed in its metadata.

A table has the name `delta:PATH_OR_URI[@VERSION]` or `iceberg:CATALOG.NAMESPACE.TABLE[@SNAPSHOT]`. Its files are
planned and read like other Parquet files, but their columns may have other names or constant values. Only the driver
uses the libraries of the tables.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.deletes import delta_deletes, kept_rows, position_deletes
from spanlake.extraction.source.equality import FIELD_ID, EqualityDeletes, NewerKeys
from spanlake.extraction.source.model import (
    ColumnPlaces,
    Constant,
    FileColumn,
    Source,
    SourceFile,
    SourceReadError,
    Wanted,
    check_names,
    check_text_type,
    check_wanted,
    narrowed,
    sort_files,
)
from spanlake.extraction.source.parquet import Footer, ParquetReader, describe_file, judged, read_footer
from spanlake.extraction.source.table_types import plain
from spanlake.extraction.source.where import Where
from spanlake.storage import Place, locate

_NAME = re.compile(r"(delta|iceberg):(.+?)(?:@(\d+))?")
_MODULES = {"delta": "deltalake", "iceberg": "pyiceberg"}
_FOOTERS_AT_ONCE = 16
_DELTA_FEATURES = {"timestampNtz", "deletionVectors", "v2Checkpoint", "vacuumProtocolCheck", "typeWidening"}
_NO_ROWS = np.empty(0, np.int64)
_KEYS_AT_ONCE = 1 << 18  # rows of a file that are looked up together


@dataclass(frozen=True)
class TableName:
    kind: str  # delta or iceberg
    table: str  # a path or URI; for iceberg, catalogue and identifier
    version: int | None = None  # or the id of a snapshot

    def __str__(self) -> str:
        return f"{self.kind}:{self.table}" + ("" if self.version is None else f"@{self.version}")

    @staticmethod
    def parse(uri: str) -> "TableName | None":
        """Returns the table that a URI names; None for any other URI. Makes a local path absolute.

        Raises UserError if the library is not installed, or if the name of an Iceberg table has no catalogue.
        """
        match = _NAME.fullmatch(uri)
        if match is None:
            return None
        kind, table, version = match.groups()
        if find_spec(_MODULES[kind]) is None:
            raise UserError(f"{uri} needs {_MODULES[kind]}, which is not installed: pip install 'spanlake[tables]'.")
        if kind == "delta" and "://" not in table:
            table = os.path.abspath(os.path.expanduser(table))
        if kind == "iceberg" and table.count(".") < 2:
            raise UserError(f"{uri} does not name a table: give iceberg:CATALOG.NAMESPACE.TABLE.")
        return TableName(kind, table, None if version is None else int(version))

    @staticmethod
    def of(uri: str, option: str) -> "TableName":
        """Returns the table that a URI names. Raises UserError if it names none, because the option needs one."""
        name = TableName.parse(uri)
        if name is None:
            raise UserError(f"{option} needs a table, not {uri}: give delta:PATH or iceberg:CATALOG.NAMESPACE.TABLE.")
        return name


def pinned(uri: str, recorded: str | None) -> str:
    """Returns the source to read. If `recorded`, from an existing output, is the same table, it gives the version.

    Raises UserError if `uri` requests another version.
    """
    asked, begun = TableName.parse(uri), recorded and TableName.parse(recorded)
    if not asked or not begun or (asked.kind, asked.table) != (begun.kind, begun.table):
        return uri
    if asked.version not in (None, begun.version):
        raise UserError(
            f"The output began with {begun}, and {asked} is requested: use the same version, or choose another output."
        )
    return str(begun)


def read_table(name: TableName, text_columns: tuple[str, ...], wanted: Wanted, where: Where | None = None) -> Source:
    """Returns a snapshot of a table as a source. Without a version, it is the newest snapshot.

    Raises UserError for a table that cannot be reached, has no such version, or has features that cannot be read.
    """
    snapshot = open_snapshot(name)
    schema = schema_of(snapshot, text_columns, wanted)
    files = describe_files(snapshot, schema, snapshot.files, where)
    return Source(str(snapshot.name), snapshot.root, sort_files(files), schema, (), deep=True, format="table")


def open_snapshot(name: TableName, columns_of: "Snapshot | None" = None) -> "Snapshot":
    """Returns the files of a snapshot. `columns_of` is another snapshot of the table, whose columns they should have.

    Raises UserError as `read_table` does.
    """
    if name.kind == "delta":
        snapshot = _delta_snapshot(name)
        return replace(snapshot, schema=columns_of.schema) if columns_of else snapshot
    return _iceberg_snapshot(name, columns_of.name.version if columns_of else None)


def schema_of(snapshot: "Snapshot", text_columns: tuple[str, ...], wanted: Wanted) -> pa.Schema:
    """Returns the columns to read. Raises UserError as `read_table` does."""
    everything = pa.schema([field.remove_metadata() for field in plain(snapshot.schema)])
    check_names(str(snapshot.name), everything, text_columns, wanted)
    check_wanted(str(snapshot.name), wanted, everything.names)
    schema = narrowed(everything, text_columns, wanted)
    check_text_type(schema, text_columns)
    return schema


def describe_files(
    snapshot: "Snapshot", schema: pa.Schema, files: Sequence["TableFile"], where: Where | None = None
) -> list[SourceFile]:
    """Returns the descriptions of some files of a snapshot, from their footers, with the places of these columns.

    The files are judged by `where`, so that their footers need not be read again.
    """
    snapshot = replace(snapshot, schema=pa.schema([snapshot.schema.field(column) for column in schema.names]))

    def read(file: TableFile) -> SourceFile:
        try:
            footer = read_footer(snapshot.root.filesystem, snapshot.root.child(file.path))
        except OSError as error:
            raise UserError(
                f"{file.path} of {snapshot.name} cannot be read ({one_line(error)}): was the table vacuumed or expired?"
            ) from error
        described = describe_file(file.path, footer)
        columns = _columns(file, footer.schema, snapshot)
        kept = kept_rows(described.rows, _deleted(snapshot, file, described, footer))
        described = replace(described, columns=columns, kept=kept)
        return judged(described, footer, schema, where)

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(read, files))


@dataclass(frozen=True)
class TableFile:
    """A data file of a table."""

    path: str  # relative to the snapshot's root
    constants: dict[str, str | None]  # values of columns that the file may lack, as strings
    deleted: np.ndarray  # numbers of rows
    deleted_keys: tuple[NewerKeys, ...] = ()  # rows with these keys are deleted too

    def same_deletes(self, other: "TableFile") -> bool:
        """Returns whether the same rows are deleted from this file and the same file in another snapshot."""
        digests = [[keys.digest for keys in file.deleted_keys] for file in (self, other)]
        return digests[0] == digests[1] and np.array_equal(np.unique(self.deleted), np.unique(other.deleted))


@dataclass(frozen=True)
class Snapshot:
    name: TableName  # with its version
    root: Place
    schema: pa.Schema  # with field ids if the format has them
    files: list[TableFile]


def _deleted(snapshot: Snapshot, file: TableFile, described: SourceFile, footer: Footer) -> np.ndarray:
    """Returns the numbers of the deleted rows of a file. Reads the columns of keys that are deleted."""
    found = [file.deleted]
    for newer in file.deleted_keys:
        schema = newer.keys.schema
        unit = replace(described, columns=_columns(file, footer.schema, replace(snapshot, schema=schema))).whole()
        try:
            for first, rows in _blocks(ParquetReader(snapshot.root, schema).read(unit), schema):
                found.append(first + np.flatnonzero(newer.deleted(rows)))
        except SourceReadError as error:
            raise UserError(f"{snapshot.name} cannot be read: {error}.") from error
    return np.concatenate(found)


def _blocks(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    """Yields the batches in large blocks, each with the number of its first row."""
    first, waiting = 0, list[pa.RecordBatch]()
    for batch in batches:
        waiting.append(batch)
        if sum(batch.num_rows for batch in waiting) >= _KEYS_AT_ONCE:
            yield first, pa.Table.from_batches(waiting)
            first += sum(batch.num_rows for batch in waiting)
            waiting = []
    yield first, pa.Table.from_batches(waiting, schema)


def _columns(file: TableFile, schema: pa.Schema, snapshot: Snapshot) -> ColumnPlaces:
    """Returns the places of the table's columns that do not have their own names in a file."""
    by_id = {field.metadata[FIELD_ID]: field for field in schema if FIELD_ID in (field.metadata or {})}
    found: dict[str, FileColumn | Constant] = {}
    for column in snapshot.schema:
        identity = (column.metadata or {}).get(FIELD_ID)
        if by_id and identity:
            held = by_id.get(identity)
        else:
            held = schema.field(column.name) if column.name in schema.names else None
        if held is not None:
            _check_inner(held, column, f"{file.path} of {snapshot.name}")
            if held.name != column.name:
                found[column.name] = FileColumn(held.name)
        elif column.name in file.constants:
            found[column.name] = Constant(file.constants[column.name])
            _check_constant(file.constants[column.name], column, f"{file.path} of {snapshot.name}")
        elif column.name in schema.names:  # an earlier column with the same name
            found[column.name] = Constant(None)
    return found


def _check_constant(value: Any, column: pa.Field, place: str) -> None:
    try:
        pa.array([value], pa.string()).cast(plain(pa.schema([column])).field(0).type)
    except pa.ArrowException as error:
        raise UserError(
            f"The column {column.name} is not in {place}, and its value there ({value}) cannot be read as "
            f"{column.type}: rewrite the table's data files."
        ) from error


def _check_inner(held: pa.Field, column: pa.Field, place: str) -> None:
    """Raises UserError if fields inside a column have other names in the file, because they are found by name."""
    if not pa.types.is_nested(held.type) or held.type == column.type:
        return
    before, now = _inner_ids(held.type), _inner_ids(column.type)
    if any(path in now and now[path] != identity for path, identity in before.items()) or any(
        identity in now.values() and now.get(path) != identity for path, identity in before.items()
    ):
        raise UserError(
            f"The fields inside the column {column.name} have other names in {place}: rewrite the table's data files."
        )


def _inner_ids(kind: pa.DataType, path: str = "") -> dict[str, bytes]:
    """Returns the ids of the fields inside a type, by their paths. Fields without an id are left out."""
    found: dict[str, bytes] = {}
    for index in range(kind.num_fields):
        field = kind.field(index)
        inner = f"{path}.{field.name if pa.types.is_struct(kind) else index}"
        if FIELD_ID in (field.metadata or {}):
            found[inner] = field.metadata[FIELD_ID]
        found |= _inner_ids(field.type, inner)
    return found


def check_ancestor(name: TableName, since: int) -> None:
    """Raises UserError unless a version or snapshot comes before another one in the history of the table."""
    assert name.version is not None
    if name.kind == "delta":
        before = since <= name.version
    else:
        from pyiceberg.table.snapshots import ancestors_of

        catalog, identifier = load_iceberg(name)
        metadata = catalog.load_table(identifier).metadata
        before = any(
            found.snapshot_id == since for found in ancestors_of(metadata.snapshot_by_id(name.version), metadata)
        )
    if not before:
        raise UserError(
            f"--since {since} does not come before {name} in the history of the table: "
            "give an earlier version, or extract without --since."
        )


# --- Delta --------------------------------------------------------------------------------------------------------


def _delta_snapshot(name: TableName) -> Snapshot:
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        table = deltalake.DeltaTable(name.table, version=name.version)
        root = locate(name.table)
        _check_delta(table, name)
        actions = pa.table(table.get_add_actions(flatten=True))
        schema = pa.schema(table.schema().to_arrow())
        deleted = delta_deletes(table)
    except (DeltaError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} cannot be read ({one_line(error)}).") from error
    parts = {
        column.removeprefix("partition."): actions.column(column).cast(pa.string()).to_pylist()
        for column in actions.column_names
        if column.startswith("partition.")
    }
    encoded = actions.column("path").to_pylist()
    paths = [unquote(path) for path in encoded]
    outside = [path for path in paths if "://" in path or path.startswith("/")]
    if outside:
        raise UserError(f"{name} has files outside its directory ({outside[0]}), which cannot be read: copy it first.")
    files = [
        TableFile(path, {key: values[row] for key, values in parts.items()}, deleted.get(encoded[row], _NO_ROWS))
        for row, path in enumerate(paths)
    ]
    return Snapshot(replace(name, version=table.version()), root, schema, files)


def _check_delta(table: Any, name: TableName) -> None:
    """Raises UserError if the table uses a feature that cannot be read."""
    unknown = set(table.protocol().reader_features or ()) - _DELTA_FEATURES
    if unknown or table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        feature = ", ".join(sorted(unknown)) or "columnMapping"
        raise UserError(f"{name} uses {feature}, which cannot be read: first write it to a table without this feature.")


# --- Iceberg ------------------------------------------------------------------------------------------------------


def load_iceberg(name: TableName) -> tuple[Any, str]:
    """Returns the catalogue of a table, from pyiceberg's configuration file or the environment, and its identifier."""
    from pyiceberg.catalog import load_catalog

    catalog, identifier = name.table.split(".", 1)
    try:
        return load_catalog(catalog), identifier
    except Exception as error:  # of many kinds, as each catalogue has its own
        raise UserError(f"The Iceberg catalogue {catalog} cannot be loaded ({one_line(error)}).") from error


def _iceberg_snapshot(name: TableName, columns_of: int | None) -> Snapshot:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    catalog, identifier = load_iceberg(name)
    try:
        table = catalog.load_table(identifier)
    except Exception as error:  # of many kinds
        raise UserError(f"{name} cannot be read ({one_line(error)}).") from error
    snapshot = table.current_snapshot() if name.version is None else table.snapshot_by_id(name.version)
    if snapshot is None:
        raise UserError(
            f"{name} has no such snapshot: choose a snapshot from its history, or leave it out for the newest."
            if name.version is not None
            else f"{name} has no snapshot yet, so there is nothing to read: write rows to it first."
        )
    schema = table.scan(snapshot_id=columns_of or snapshot.snapshot_id).projection()
    root = locate(table.location())
    try:
        files = _iceberg_files(name, table, snapshot, schema)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{name} cannot be read ({one_line(error)}).") from error
    return Snapshot(
        replace(name, version=snapshot.snapshot_id), root, schema_to_pyarrow(schema, include_field_ids=True), files
    )


def _iceberg_files(name: TableName, table: Any, snapshot: Any, schema: Any) -> list[TableFile]:
    """Returns the data files of a snapshot with their deletes.

    Plans them from the manifests, because pyiceberg's own scan refuses tables with equality deletes.
    """
    from pyiceberg.manifest import DataFileContent
    from pyiceberg.table import ManifestGroupPlanner
    from pyiceberg.table.delete_file_index import DeleteFileIndex

    planner = ManifestGroupPlanner(table.metadata, table.io)
    entries = list(chain.from_iterable(planner.plan_manifest_entries(snapshot.manifests(table.io))))
    positions = DeleteFileIndex()
    for entry in entries:
        if entry.data_file.content == DataFileContent.POSITION_DELETES:
            positions.add_delete_file(entry, entry.data_file.partition)
    equal = (entry for entry in entries if entry.data_file.content == DataFileContent.EQUALITY_DELETES)
    keys = EqualityDeletes(str(name), table, schema, equal)
    data = [entry for entry in entries if entry.data_file.content == DataFileContent.DATA]
    files = [entry.data_file for entry in data]
    deletes = {
        file.file_path: positions.for_data_file(entry.sequence_number or 0, file, file.partition)
        for entry, file in zip(data, files, strict=True)
    }
    deleted = position_deletes(str(name), table.io, deletes)
    return [
        _iceberg_file(file, table, schema, name, deleted[file.file_path], keys.of(entry))
        for entry, file in zip(data, files, strict=True)
    ]


def _iceberg_file(
    file: Any, table: Any, schema: Any, name: TableName, deleted: np.ndarray, deleted_keys: tuple[NewerKeys, ...]
) -> TableFile:
    location = table.location().rstrip("/") + "/"
    if file.file_format.value.lower() != "parquet":
        raise UserError(
            f"{name} has data files in {file.file_format.value}, and only Parquet can be read: rewrite them as Parquet."
        )
    if not file.file_path.startswith(location):
        raise UserError(
            f"{name} has files outside its location ({file.file_path}), which cannot be read: copy it first."
        )
    constants = {field.name: field.initial_default for field in schema.fields if field.initial_default is not None}
    for position, field in enumerate(table.specs()[file.spec_id].fields):
        if str(field.transform) == "identity" and field.source_id in schema.field_ids:
            constants[schema.find_column_name(field.source_id)] = file.partition[position]
    return TableFile(
        file.file_path.removeprefix(location),
        {key: None if value is None else str(value) for key, value in constants.items()},
        deleted,
        deleted_keys,
    )
