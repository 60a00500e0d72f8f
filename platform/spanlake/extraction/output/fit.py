"""Checks before a run whether a table can hold its output: the types of the columns, and their values."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.model import Source, SourceFile, SourceReadError
from spanlake.extraction.source.parquet import ParquetReader
from spanlake.extraction.source.table_types import may_lose, plain
from spanlake.extraction.source.widening import widened

_FILES_AT_ONCE = 8


def fit(
    table: str,
    schema: pa.Schema,
    there: pa.Schema | None,
    in_table: Callable[[pa.Schema], pa.Schema],
    *,
    evolve: bool,
) -> pa.Schema:
    """Returns the types in which a table holds the columns of an output. Each type holds every value of its column.

    `there` are the columns of the table; None if it does not exist. `in_table` returns the types of columns that the
    table would add, as it does with `evolve`.
    Raises UserError that names all columns without such a type, and all that the table or the output lacks.
    """
    wanted = plain(schema.remove_metadata())
    known = pa.schema([]) if there is None else there
    new = [column.remove_metadata().with_nullable(True) for column in wanted if column.name not in known.names]
    if new and not evolve:
        raise UserError(
            f"{table} lacks the column{'s' * (len(new) > 1)} {', '.join(column.name for column in new)}: "
            "give --evolve to add what it lacks, choose another table, or leave them out with --columns."
        )
    held = {column.name: column for column in [*known, *(in_table(pa.schema(new)) if new else ())]}
    problems = [
        f"{column.name} is {held[column.name].type} in {table} and {schema.field(column.name).type} in the output"
        for column in wanted
        if widened(held[column.name].type, column.type) != held[column.name].type
    ]
    sure = {column.name for column in wanted if not column.nullable}
    required = [column.name for column in known if not column.nullable]
    problems += [
        f"{name} is required in {table} and may be null in the output" for name in required if name not in sure
    ]
    if problems:
        raise UserError(
            f"The column{'s' * (len(problems) > 1)} {'; '.join(problems)}: "
            "choose another table, or change the columns of the source."
        )
    return pa.schema([held[name].remove_metadata() for name in wanted.names])


def check_partitions(table: str, there: Sequence[str], asked: Sequence[str]) -> None:
    """Raises UserError if a table exists with other partitions than those that are asked for, if any are."""
    if asked and list(asked) != list(there):
        raise UserError(
            f"{table} is partitioned by {', '.join(there) or 'no column'}, and --partition-by asks for "
            f"{', '.join(asked)}: leave it out, or choose another table."
        )


def check_values(table: str, source: Source, schema: pa.Schema) -> None:
    """Reads the source columns whose values the table may not hold: times in units other than microseconds.

    Raises UserError that names a column with such a value, and its file.
    """
    columns = pa.schema([column for column in source.schema if column.name in schema.names and may_lose(column.type)])

    def check(file: SourceFile) -> None:
        with suppress(SourceReadError):  # the unit with these rows reports it
            for batch in ParquetReader(source.root, columns).read(file.whole()):
                _check_batch(table, batch, file)

    if columns.names:
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(check, source.files))


def _check_batch(table: str, batch: pa.RecordBatch, file: SourceFile) -> None:
    for column in plain(batch.schema):
        try:
            batch.column(column.name).cast(column.type)
        except pa.ArrowException as error:
            raise UserError(
                f"The column {column.name} of {file.path} has a time that is not a whole number of microseconds, and "
                f"{table} stores times in microseconds ({one_line(error)}): round the times in the source."
            ) from error
