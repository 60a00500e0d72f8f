"""An Iceberg table as the target of an output. The mark is a property of the table."""

import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.extraction.output.fit import check_partitions, fit
from spanlake.extraction.output.target import COMMITS, TableOptions, UnitRows, all_rows, beaten, held
from spanlake.extraction.source.model import CHANGE, DELETED
from spanlake.extraction.source.table_types import plain
from spanlake.extraction.source.tables import TableName, load_iceberg

_FILE_BYTES = 256 << 20  # of a data file before compression; so much is held in memory


class IcebergTarget:
    def __init__(self, name: TableName, options: TableOptions) -> None:
        self.options = options
        self._name = name
        self._catalog, self._identifier = load_iceberg(name)

    def __str__(self) -> str:
        return str(self._name)

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        if not self._catalog.table_exists(self._identifier):
            fitting = fit(str(self), schema, None, self._in_new_table, evolve=True)
            self._new_table(fitting)  # which refuses columns that cannot be partitions
            return fitting
        table = self._catalog.load_table(self._identifier)
        self._check_partitions(table)

        def added(columns: pa.Schema) -> pa.Schema:
            known = plain(schema_to_pyarrow(_united(table, columns)))
            return pa.schema([known.field(name) for name in columns.names])

        there = table.schema()
        if self.options.evolve:
            with suppress(Exception):  # then `fit` names the columns that do not fit
                there = _united(table, plain(schema.remove_metadata()))
        return fit(str(self), schema, plain(schema_to_pyarrow(there)), added, evolve=self.options.evolve)

    def _check_partitions(self, table: Any) -> None:
        spec, schema = table.spec(), table.schema()
        columns = [schema.find_column_name(part.source_id) for part in spec.fields]
        check_partitions(str(self), columns, self.options.partition_by)
        for part, column in zip(spec.fields, columns, strict=True):
            try:
                part.transform.pyarrow_transform(schema.find_type(part.source_id))
            except Exception as error:  # of many kinds
                raise UserError(
                    f"{self} is partitioned by {part.transform} of {column}, which pyiceberg cannot write "
                    f"({one_line(error)}): install what it lacks, or choose another table."
                ) from error

    def _in_new_table(self, columns: pa.Schema) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        transaction = self._catalog.create_table_transaction(self._identifier, columns)  # never committed
        return plain(schema_to_pyarrow(transaction.table_metadata.schema()))

    def _new_table(self, schema: pa.Schema) -> Any:
        """Returns a transaction that creates the table."""
        transaction = self._catalog.create_table_transaction(self._identifier, schema)
        if self.options.partition_by:
            with transaction.update_spec() as update:
                for column in self.options.partition_by:
                    update.add_identity(column)
        return transaction

    def holds(self, mark: str) -> bool:
        return self._catalog.table_exists(self._identifier) and (
            mark in self._catalog.load_table(self._identifier).properties
        )

    def append(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        self._add(units, schema, mark, None)

    def merge(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        """Deletes the rows with the keys of the output, and adds its rows.

        pyiceberg writes the data files again that hold such rows, and holds each of them in memory.
        """
        from pyiceberg.table.upsert_util import create_match_filter

        keys = list(self.options.merge_on)
        found = [pa.Table.from_batches([batch.select(keys)]) for batch in all_rows(units)]
        match = create_match_filter(pa.concat_tables(found), keys) if any(part.num_rows for part in found) else None
        self._add(units, schema, mark, match)

    def _add(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str, match: Any) -> None:
        """Repeats the commit if another writer was first. Writes the files of a table without partitions only once."""
        from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError
        from pyiceberg.io import load_file_io

        metadata = self._transaction(schema, mark).table_metadata
        files = load_file_io(self._catalog.properties, metadata.location)
        paths: list[str] = []
        if not metadata.spec().fields:
            with _removed_on(BaseException, files, paths):
                for table in _file_tables(_added(units, schema), schema):
                    paths.append(f"{metadata.location}/data/spanlake-{uuid.uuid4().hex}.parquet")
                    with files.new_output(paths[-1]).create() as stream:
                        pq.write_table(table, stream, compression="zstd")
        with _removed_on(ShortfallError, files, paths):  # after any other error, they may be committed
            for attempt in range(COMMITS):
                with suppress(CommitFailedException, TableAlreadyExistsError):
                    self._commit(units, schema, mark, match, paths)
                    return
                time.sleep(random.uniform(0, 2**attempt / 10))
            raise beaten(self)

    def _commit(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str, match: Any, paths: list[str]) -> None:
        with self._transaction(schema, mark) as transaction:
            if self.options.evolve:
                with transaction.update_schema() as update:
                    update.union_by_name(schema)
            transaction.set_properties({mark: "1"})
            if match is not None and transaction.table_metadata.current_snapshot_id is not None:
                transaction.delete(match)
            if paths:
                transaction.add_files(paths)
            elif transaction.table_metadata.spec().fields:
                for table in _file_tables(_added(units, schema), schema):
                    transaction.append(table)

    def _transaction(self, schema: pa.Schema, mark: str) -> Any:
        if not self._catalog.table_exists(self._identifier):
            return self._new_table(schema)
        table = self._catalog.load_table(self._identifier)
        if mark in table.properties:
            raise held(self)
        table.metadata.properties["commit.retry.num-retries"] = (
            "0"  # only for this commit: a retry would not check the mark
        )
        return table.transaction()


def _united(table: Any, columns: pa.Schema) -> Any:
    """Returns the schema of a table with these columns added or widened."""
    transaction = table.transaction()  # never committed
    with transaction.update_schema() as update:
        update.union_by_name(columns)
    return transaction.table_metadata.schema()


@contextmanager
def _removed_on(kind: type[BaseException], files: Any, paths: list[str]) -> Iterator[None]:
    try:
        yield
    except kind:
        for path in paths:
            with suppress(Exception):
                files.delete(path)
        raise


def _added(units: Sequence[UnitRows], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the rows to add. If they are to be merged, they have the column CHANGE, which `schema` lacks."""
    for batch in all_rows(units):
        if CHANGE not in schema.names and CHANGE in batch.schema.names:
            batch = batch.filter(pc.not_equal(batch.column(CHANGE), DELETED)).drop_columns(CHANGE)
        yield batch


def _file_tables(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the rows in tables of the size of one data file."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        waiting.append(batch)
        size += batch.nbytes
        if size >= _FILE_BYTES:
            yield pa.Table.from_batches(waiting, schema)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)
