"""A Delta table as the target of an output.

The mark is an application transaction id (Delta protocol, section Transaction Identifiers).
"""

import random
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from spanlake.errors import UserError
from spanlake.extraction.output.fit import check_partitions, fit
from spanlake.extraction.output.target import COMMITS, TableOptions, UnitRows, all_rows, beaten, held, marked
from spanlake.extraction.source.model import CHANGE, DELETED
from spanlake.extraction.source.tables import TableName
from spanlake.extraction.source.widening import stored_type


class DeltaTarget:
    def __init__(self, name: TableName, options: TableOptions) -> None:
        self.options = options
        self._name = name

    def __str__(self) -> str:
        return str(self._name)

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        from deltalake import DeltaTable

        exists = DeltaTable.is_deltatable(self._name.table)
        if not exists:
            _check_names(str(self), schema)
            return fit(str(self), schema, None, _in_delta, evolve=True)
        table = DeltaTable(self._name.table)
        check_partitions(str(self), table.metadata().partition_columns, self.options.partition_by)
        there = pa.schema(table.schema().to_arrow())
        _check_names(str(self), [*there, *(column for column in schema if column.name not in there.names)])
        return fit(str(self), schema, there, _in_delta, evolve=self.options.evolve)

    def holds(self, mark: str) -> bool:
        from deltalake import DeltaTable

        return DeltaTable.is_deltatable(self._name.table) and (
            DeltaTable(self._name.table).transaction_version(mark) is not None
        )

    def append(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        from deltalake import DeltaTable

        self._create(schema)
        table = DeltaTable(self._name.table)
        if table.transaction_version(mark) is not None:
            raise held(self)
        self._append(table, pa.RecordBatchReader.from_batches(schema, all_rows(units)), mark)

    def _append(self, table: Any, rows: pa.RecordBatchReader, mark: str) -> None:
        from deltalake import CommitProperties, Transaction, write_deltalake

        write_deltalake(  # fails if another run has added this mark in the meantime
            table,
            rows,
            mode="append",
            schema_mode="merge" if self.options.evolve else None,
            commit_properties=CommitProperties(app_transactions=[Transaction(mark, 1)]),
        )

    def merge(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        from deltalake import DeltaTable
        from deltalake.exceptions import CommitFailedError

        self._create(schema)
        for attempt in range(COMMITS):
            table = DeltaTable(self._name.table)
            if table.transaction_version(mark) is not None:
                raise held(self)
            with suppress(CommitFailedError):  # another writer changed the table since it was read
                self._merge(table, units, schema, mark)
                if not self.holds(mark):  # a merge that changes nothing makes no transaction
                    self._append(table, pa.RecordBatchReader.from_batches(schema, []), mark)
                return
            time.sleep(random.uniform(0, 2**attempt / 10))
        raise beaten(self)

    def _merge(self, table: Any, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        from deltalake import CommitProperties, Transaction

        values = {_quoted(name): f"new.{_quoted(name)}" for name in schema.names}
        deleted = f"new.{CHANGE} = '{DELETED}'"
        (
            table.merge(
                pa.RecordBatchReader.from_batches(marked(schema), all_rows(units)),
                " AND ".join(f"old.{_quoted(name)} = new.{_quoted(name)}" for name in self.options.merge_on),
                source_alias="new",
                target_alias="old",
                merge_schema=self.options.evolve,
                commit_properties=CommitProperties(app_transactions=[Transaction(mark, 1)]),
            )
            .when_matched_delete(deleted)
            .when_matched_update(values, f"NOT ({deleted})")
            .when_not_matched_insert(values, f"NOT ({deleted})")
            .execute()
        )

    def _create(self, schema: pa.Schema) -> None:
        """Creates the table if it does not exist.

        It is not done with the rows, because two writers that create a table while they add rows would both add them.
        """
        from deltalake import DeltaTable

        if not DeltaTable.is_deltatable(self._name.table):
            partitions = list(self.options.partition_by)
            DeltaTable.create(self._name.table, schema, mode="ignore", partition_by=partitions)


def _check_names(table: str, fields: Iterable[pa.Field]) -> None:
    """Raises UserError for names that differ by case only, of columns or of fields in a struct."""
    known: dict[str, str] = {}
    for field in fields:
        other = known.setdefault(field.name.lower(), field.name)
        if other != field.name:
            raise UserError(
                f"{table} cannot hold both {other} and {field.name}, because names in Delta ignore case: rename one in "
                "the source, or leave it out with --columns."
            )
        _check_names(table, [field.type.field(index) for index in range(field.type.num_fields)])


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


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
