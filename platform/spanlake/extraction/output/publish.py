"""A complete output into a Delta or Iceberg table, in one transaction: all of its rows, and never any of them twice.

The transaction carries a mark of what it holds: the output and its plan. The mark and the rows are committed together
or not at all, so the table alone says what has been published, whatever happened to who published it.
"""

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.extraction.output.fit import fit
from spanlake.extraction.output.ledger import FOLDER, SUFFIX, Ledger
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.output.rows import unit_footer
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.table_types import plain
from spanlake.extraction.source.tables import TableName, load_iceberg
from spanlake.extraction.source.widening import stored_type
from spanlake.storage import Place

_BATCH_ROWS = 1024
_FILE_BYTES = 256 << 20  # of a data file, before it is compressed: what is held in memory
_COMMITS = 8


class Target(Protocol):
    """A table that rows are added to. Its methods raise what its library raises."""

    name: TableName

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        """The types in which rows of a schema are written to it. Raises UserError for columns that cannot be."""
        ...

    def holds(self, mark: str) -> bool: ...

    def append(self, rows: pa.RecordBatchReader, mark: str) -> None:
        """Add rows and mark in one transaction; columns that the table lacks are added to it."""
        ...


def open_target(uri: str, schema: pa.Schema, source: str = "") -> Target:
    """The table that a URI names, which need not exist, for an output of this schema.

    Raises UserError for one that cannot be reached, cannot hold these columns, or is the source of the output.
    """
    name = TableName.parse(uri)
    if name is None or name.version is not None:
        raise UserError(f"--into {uri} names no table to add to: give delta:PATH or iceberg:CATALOG.NAMESPACE.TABLE.")
    read = TableName.parse(source)
    if read and (read.kind, read.table) == (name.kind, name.table):
        raise UserError(f"--into {uri} is the source itself, which would then hold its rows twice: choose another.")
    target: Target = _Delta(name) if name.kind == "delta" else _Iceberg(name)
    try:
        target.fitted(schema)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{name} cannot take the output ({one_line(error)}).") from error
    return target


def publish(ledger: Ledger, target: Target) -> int:
    """Add to a table what it does not hold yet of a complete output. Returns the number of units added.

    Raises ShortfallError where the output is incomplete, or the table does not take the rows; it then has none.
    """
    if ledger.pending(ledger.committed()).num_rows:
        raise ShortfallError(f"{ledger.output.uri} lacks units, so nothing of it was added to {target.name}")
    try:
        held = {unit.name for plan in _published_plans(ledger, target) for unit in units_of(plan)}
        units = [unit for unit in units_of(ledger.plan) if unit.name not in held]
        mark = _mark(ledger, ledger.manifest["plan"])
        if units or not target.holds(mark):
            schema = target.fitted(ledger.schema)
            target.append(pa.RecordBatchReader.from_batches(schema, _rows(ledger, units, schema)), mark)
    except ShortfallError:
        raise
    except Exception as error:  # of many kinds
        raise ShortfallError(
            f"{target.name} did not take the rows ({one_line(error)}); "
            f"{ledger.output.uri} is complete, and the same command tries again"
        ) from error
    return len(units)


def _published_plans(ledger: Ledger, target: Target) -> Iterator[pa.Table]:
    """The plans of this output, now and before sources were added, that the table has all rows of."""
    folder = Place(ledger.output.uri, ledger.output.filesystem, ledger.output.child(FOLDER))
    for info in folder.list(recursive=False):
        name = PurePosixPath(info.path).name
        if name.startswith("plan-") and target.holds(_mark(ledger, name)):
            yield pq.read_table(info.path, filesystem=folder.filesystem)


def _mark(ledger: Ledger, plan: str) -> str:
    return f"spanlake.{ledger.manifest['id']}.{plan.removesuffix('.parquet')}"


def _rows(ledger: Ledger, units: list[Unit], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for unit in units:
        path = ledger.output.child(unit.name + SUFFIX)
        with (
            ledger.output.filesystem.open_input_file(path) as source,
            pq.ParquetFile(source, page_checksum_verification=True) as parquet,
        ):
            said = unit_footer(parquet.metadata) or {}
            if (said.get("unit"), said.get("run")) != (unit.name, ledger.request_digest):
                raise ShortfallError(f"{path} is not the unit that was committed: see `spanlake audit`")
            for batch in parquet.iter_batches(_BATCH_ROWS):
                yield batch.cast(schema)


# --- the two formats ----------------------------------------------------------------------------------------------


class _Delta:
    """The mark is an application's transaction identifier (Delta protocol, section Transaction Identifiers)."""

    def __init__(self, name: TableName) -> None:
        self.name = name

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        from deltalake import DeltaTable

        exists = DeltaTable.is_deltatable(self.name.table)
        there = pa.schema(DeltaTable(self.name.table).schema().to_arrow()) if exists else pa.schema([])
        return fit(str(self.name), schema, there, _in_delta)

    def holds(self, mark: str) -> bool:
        from deltalake import DeltaTable

        return DeltaTable.is_deltatable(self.name.table) and (
            DeltaTable(self.name.table).transaction_version(mark) is not None
        )

    def append(self, rows: pa.RecordBatchReader, mark: str) -> None:
        from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

        if not DeltaTable.is_deltatable(self.name.table):
            # By itself: of two that make a table by adding rows to it, both add theirs.
            DeltaTable.create(self.name.table, rows.schema, mode="ignore")
        table = DeltaTable(self.name.table)
        if table.transaction_version(mark) is not None:
            raise _held(self.name)
        write_deltalake(  # which fails if this mark has come since
            table,
            rows,
            mode="append",
            schema_mode="merge",
            commit_properties=CommitProperties(app_transactions=[Transaction(mark, 1)]),
        )


def _in_delta(schema: pa.Schema) -> pa.Schema:
    """Returns the types in which a Delta table has new columns. Raises UserError for types that it does not have."""
    from deltalake import Schema

    fields: list[pa.Field] = []
    for field in schema:
        try:
            stored = Schema.from_arrow(pa.schema([field.with_type(stored_type(field.type))]))
        except Exception as error:  # a plain Exception is what it raises
            raise UserError(
                f"A Delta table cannot hold the column {field.name} of type {field.type}: cast it in the source."
            ) from error
        fields += pa.schema(stored.to_arrow())
    return pa.schema(fields)


class _Iceberg:
    """The mark is a property of the table."""

    def __init__(self, name: TableName) -> None:
        self.name = name
        self._catalog, self._identifier = load_iceberg(name)

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        if not self._catalog.table_exists(self._identifier):
            return fit(str(self.name), schema, pa.schema([]), self._in_new_table)
        table = self._catalog.load_table(self._identifier)
        if table.spec().fields:
            raise UserError(f"{self.name} is partitioned, and rows can only be added to one that is not.")

        def added(columns: pa.Schema) -> pa.Schema:
            transaction = table.transaction()  # which is not committed
            with transaction.update_schema() as update:
                update.union_by_name(columns)
            known = plain(schema_to_pyarrow(transaction.table_metadata.schema()))
            return pa.schema([known.field(name) for name in columns.names])

        return fit(str(self.name), schema, plain(schema_to_pyarrow(table.schema())), added)

    def _in_new_table(self, columns: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        transaction = self._catalog.create_table_transaction(self._identifier, columns)  # which is not committed
        return plain(schema_to_pyarrow(transaction.table_metadata.schema()))

    def holds(self, mark: str) -> bool:
        return self._catalog.table_exists(self._identifier) and (
            mark in self._catalog.load_table(self._identifier).properties
        )

    def append(self, rows: pa.RecordBatchReader, mark: str) -> None:
        """Data files are written once, and committed again where another writer was first."""
        from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError
        from pyiceberg.io import load_file_io

        location = self._transaction(rows.schema, mark).table_metadata.location
        files = load_file_io(self._catalog.properties, location)
        paths: list[str] = []
        with _removed_on(BaseException, files, paths):
            for table in _file_tables(rows):
                paths.append(f"{location}/data/spanlake-{uuid.uuid4().hex}.parquet")
                with files.new_output(paths[-1]).create() as stream:
                    pq.write_table(table, stream, compression="zstd")
        with _removed_on(ShortfallError, files, paths):  # after any other error they may have been committed
            for attempt in range(_COMMITS):
                with suppress(CommitFailedException, TableAlreadyExistsError):
                    self._commit(rows.schema, paths, mark)
                    return
                time.sleep(random.uniform(0, 2**attempt / 10))
            raise ShortfallError(f"other writers changed {self.name} each of the {_COMMITS} times that it was tried")

    def _commit(self, schema: pa.Schema, paths: list[str], mark: str) -> None:
        with self._transaction(schema, mark) as transaction:
            with transaction.update_schema() as update:
                update.union_by_name(schema)
            transaction.set_properties({mark: "1"})
            if paths:
                transaction.add_files(paths)

    def _transaction(self, schema: pa.Schema, mark: str) -> Any:
        if not self._catalog.table_exists(self._identifier):
            return self._catalog.create_table_transaction(self._identifier, schema)
        table = self._catalog.load_table(self._identifier)
        if mark in table.properties:
            raise _held(self.name)
        table.metadata.properties["commit.retry.num-retries"] = "0"  # here alone: a retry would not look for the mark
        return table.transaction()


@contextmanager
def _removed_on(kind: type[BaseException], files: Any, paths: list[str]) -> Iterator[None]:
    try:
        yield
    except kind:
        for path in paths:
            with suppress(Exception):
                files.delete(path)
        raise


def _file_tables(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables of the size of one data file."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        waiting.append(batch)
        size += batch.nbytes
        if size >= _FILE_BYTES:
            yield pa.Table.from_batches(waiting, rows.schema)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, rows.schema)


def _held(name: TableName) -> ShortfallError:
    return ShortfallError(f"another run has added the same rows to {name}")
