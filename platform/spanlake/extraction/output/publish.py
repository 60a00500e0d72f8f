"""Adds a complete output to a Delta or Iceberg table in one transaction, so that every row is there exactly once.

The transaction has a mark with the output and its plan. Mark and rows are committed together or not at all. So the
table alone says what was published, even if the process that published it was killed.
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
_FILE_BYTES = 256 << 20  # of a data file before compression; so much is held in memory
_COMMITS = 8


class Target(Protocol):
    """A table that receives rows. Its methods raise whatever its library raises."""

    name: TableName

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        """Returns the types in which the table holds columns. Raises UserError for columns that it cannot hold."""
        ...

    def holds(self, mark: str) -> bool: ...

    def append(self, rows: pa.RecordBatchReader, mark: str) -> None:
        """Adds rows and mark in one transaction, and the columns that the table lacks."""
        ...


def open_target(uri: str, schema: pa.Schema, source: str = "") -> Target:
    """Returns the table that a URI names, for an output with this schema. The table need not exist.

    Raises UserError for a table that cannot be reached, cannot hold these columns, or is the source of the output.
    """
    target = target_named(uri)
    name = target.name
    read = TableName.parse(source)
    if read and (read.kind, read.table) == (name.kind, name.table):
        raise UserError(
            f"--into {uri} is the source itself, which would then have its rows twice: choose another table."
        )
    try:
        target.fitted(schema)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{name} cannot take the output ({one_line(error)}).") from error
    return target


def target_named(uri: str) -> Target:
    """Returns the table that a URI names. Raises UserError if it names none."""
    name = TableName.parse(uri)
    if name is None or name.version is not None:
        raise UserError(f"--into {uri} does not name a table: give delta:PATH or iceberg:CATALOG.NAMESPACE.TABLE.")
    return _Delta(name) if name.kind == "delta" else _Iceberg(name)


def published(ledger: Ledger, target: Target) -> bool:
    """Returns whether a table has all rows of an output."""
    return target.holds(_mark(ledger, ledger.manifest["plan"]))


def publish(ledger: Ledger, target: Target) -> int:
    """Adds the units of a complete output that a table does not have yet, and returns their number.

    Raises ShortfallError if the output is incomplete, or if the table does not accept the rows and then has none.
    """
    if ledger.pending(ledger.committed()).num_rows:
        raise ShortfallError(
            f"{ledger.output.uri} lacks units, so none were added to {target.name}: run the same command again"
        )
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
            f"{target.name} did not accept the rows ({one_line(error)}); "
            f"{ledger.output.uri} is complete, and the same command tries again"
        ) from error
    return len(units)


def _published_plans(ledger: Ledger, target: Target) -> Iterator[pa.Table]:
    """Yields the plans of this output, current and earlier ones, whose rows are all in the table."""
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
                raise ShortfallError(f"{path} is not the committed unit: run `spanlake audit`")
            for batch in parquet.iter_batches(_BATCH_ROWS):
                yield batch.cast(schema)


# --- the two formats ----------------------------------------------------------------------------------------------


class _Delta:
    """A Delta table. The mark is an application transaction id (Delta protocol, section Transaction Identifiers)."""

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
            # Separately, because two writers that create a table while they add rows would both add them.
            DeltaTable.create(self.name.table, rows.schema, mode="ignore")
        table = DeltaTable(self.name.table)
        if table.transaction_version(mark) is not None:
            raise _held(self.name)
        write_deltalake(  # fails if another run has added this mark in the meantime
            table,
            rows,
            mode="append",
            schema_mode="merge",
            commit_properties=CommitProperties(app_transactions=[Transaction(mark, 1)]),
        )


def _in_delta(schema: pa.Schema) -> pa.Schema:
    """Returns the types of new columns in a Delta table. Raises UserError for types that Delta does not have."""
    from deltalake import Schema

    fields: list[pa.Field] = []
    for field in schema:
        try:
            stored = Schema.from_arrow(pa.schema([field.with_type(stored_type(field.type))]))
        except Exception as error:  # the library raises a plain Exception
            raise UserError(
                f"A Delta table cannot hold the column {field.name} of type {field.type}: cast it in the source."
            ) from error
        fields += pa.schema(stored.to_arrow())
    return pa.schema(fields)


class _Iceberg:
    """An Iceberg table. The mark is a property of the table."""

    def __init__(self, name: TableName) -> None:
        self.name = name
        self._catalog, self._identifier = load_iceberg(name)

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        if not self._catalog.table_exists(self._identifier):
            return fit(str(self.name), schema, pa.schema([]), self._in_new_table)
        table = self._catalog.load_table(self._identifier)
        if table.spec().fields:
            raise UserError(f"{self.name} is partitioned, and rows can only be added to a table without partitions.")

        def added(columns: pa.Schema) -> pa.Schema:
            transaction = table.transaction()  # never committed
            with transaction.update_schema() as update:
                update.union_by_name(columns)
            known = plain(schema_to_pyarrow(transaction.table_metadata.schema()))
            return pa.schema([known.field(name) for name in columns.names])

        return fit(str(self.name), schema, plain(schema_to_pyarrow(table.schema())), added)

    def _in_new_table(self, columns: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        transaction = self._catalog.create_table_transaction(self._identifier, columns)  # never committed
        return plain(schema_to_pyarrow(transaction.table_metadata.schema()))

    def holds(self, mark: str) -> bool:
        return self._catalog.table_exists(self._identifier) and (
            mark in self._catalog.load_table(self._identifier).properties
        )

    def append(self, rows: pa.RecordBatchReader, mark: str) -> None:
        """Writes the data files once, and repeats the commit if another writer was first."""
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
        with _removed_on(ShortfallError, files, paths):  # after any other error, they may be committed
            for attempt in range(_COMMITS):
                with suppress(CommitFailedException, TableAlreadyExistsError):
                    self._commit(rows.schema, paths, mark)
                    return
                time.sleep(random.uniform(0, 2**attempt / 10))
            raise ShortfallError(f"other writers changed {self.name} during each of {_COMMITS} attempts to commit")

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
        table.metadata.properties["commit.retry.num-retries"] = (
            "0"  # only for this commit: a retry would not check the mark
        )
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
    """Yields the rows in tables of the size of one data file."""
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
