"""Adds a complete output to a Delta or Iceberg table in one transaction, so that every row is there exactly once.

The transaction has a mark with the output and its plan. Mark and rows are committed together or not at all. So the
table alone says what was published, even if the process that published it was killed.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.extraction.output.dataset import PREFIX, Apart, DatasetTarget
from spanlake.extraction.output.delta import DeltaTarget
from spanlake.extraction.output.iceberg import IcebergTarget
from spanlake.extraction.output.ledger import FOLDER, SUFFIX, Ledger
from spanlake.extraction.output.merge import replaced_keys, without_replaced
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.output.rows import footer_of
from spanlake.extraction.output.target import TableOptions, Target, UnitRows, marked
from spanlake.extraction.source.model import CHANGE, Unit
from spanlake.extraction.source.parquet import open_streamed
from spanlake.extraction.source.tables import TableName

_BATCH_ROWS = 1024


def open_target(
    uri: str,
    schema: pa.Schema,
    source: str = "",
    options: TableOptions | None = None,
    apart: Sequence[Apart] = (),
) -> Target:
    """Returns the table or directory that a URI names, for an output with this schema. It need not exist.

    `apart` are the directories of the source and the output.
    Raises UserError for a table that cannot be reached, cannot hold these columns, or is the source of the output.
    """
    options = options or TableOptions()
    target = target_named(uri, options, apart)
    name, read = TableName.parse(uri), TableName.parse(source)
    if name and read and (read.kind, read.table) == (name.kind, name.table):
        raise UserError(
            f"--into {uri} is the source itself, which would then have its rows twice: choose another table."
        )
    for option, columns in (("--merge-on", options.merge_on), ("--partition-by", options.partition_by)):
        missing = [column for column in columns if column not in schema.names]
        if missing:
            raise UserError(
                f"{option} {missing[0]} is not a column of the output: give one of {', '.join(schema.names)}."
            )
        nested = [schema.field(column) for column in columns if pa.types.is_nested(schema.field(column).type)]
        if nested:
            raise UserError(
                f"{option} {nested[0].name} is a column of {nested[0].type}: give columns of plain values, such as "
                "strings or numbers."
            )
    try:
        target.fitted(_columns(schema, options))
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{target} cannot take the output ({one_line(error)}).") from error
    return target


def target_named(uri: str, options: TableOptions, apart: Sequence[Apart] = ()) -> Target:
    """Returns the table or directory that a URI names. Raises UserError if it names none."""
    if uri.startswith(PREFIX):
        return DatasetTarget(uri, options, apart)
    name = TableName.parse(uri)
    if name is None or name.version is not None:
        raise UserError(
            f"--into {uri} does not name a table: give delta:PATH, iceberg:CATALOG.NAMESPACE.TABLE or parquet:DIR."
        )
    return DeltaTarget(name, options) if name.kind == "delta" else IcebergTarget(name, options)


def _columns(schema: pa.Schema, options: TableOptions) -> pa.Schema:
    """Returns the columns that a table gets: without CHANGE, if rows are merged."""
    merged_away = [CHANGE] if options.merge_on else []
    return pa.schema([column for column in schema if column.name not in merged_away], schema.metadata)


def published(ledger: Ledger, target: Target) -> bool:
    """Returns whether a table has all rows of an output."""
    return target.holds(_mark(ledger, ledger.manifest["plan"]))


def publish(ledger: Ledger, target: Target) -> int:
    """Adds the units of a complete output that a table does not have yet, and returns their number.

    Raises ShortfallError if the output is incomplete, or if the table does not accept the rows and then has none.
    """
    if ledger.pending(ledger.committed()).num_rows:
        raise ShortfallError(
            f"{ledger.output.uri} lacks units, so none were added to {target}: run the same command again"
        )
    try:
        held = {unit.name for plan in _published_plans(ledger, target) for unit in units_of(plan)}
        units = [unit for unit in units_of(ledger.plan) if unit.name not in held]
        mark = _mark(ledger, ledger.manifest["plan"])
        if units or not target.holds(mark):
            _add(ledger, target, units, mark)
    except ShortfallError:
        raise
    except Exception as error:  # of many kinds
        raise ShortfallError(
            f"{target} did not accept the rows ({one_line(error)}); "
            f"{ledger.output.uri} is complete, and the same command tries again"
        ) from error
    return len(units)


def _add(ledger: Ledger, target: Target, units: Sequence[Unit], mark: str) -> None:
    options = target.options
    schema = target.fitted(_columns(ledger.schema, options))
    if not options.merge_on:
        target.append([UnitRows(unit.name, partial(_rows, ledger, [unit], schema)) for unit in units], schema, mark)
        return
    keys = options.merge_on
    written = marked(schema) if CHANGE in ledger.schema.names else schema
    names = [name for name in written.names if name in keys or name == CHANGE]
    replaced = replaced_keys(_rows(ledger, units, pa.schema([written.field(name) for name in names])), keys)

    def rows() -> Iterator[pa.RecordBatch]:
        return without_replaced(_rows(ledger, units, written), keys, replaced)

    target.merge([UnitRows("all", rows)], schema, mark)


def _published_plans(ledger: Ledger, target: Target) -> Iterator[pa.Table]:
    """Yields the plans of this output, current and earlier ones, whose rows are all in the table."""
    folder = ledger.output.inside(FOLDER)
    for info in folder.list(recursive=False):
        name = PurePosixPath(info.path).name
        if name.startswith("plan-") and target.holds(_mark(ledger, name)):
            yield pq.read_table(info.path, filesystem=folder.filesystem)


def _mark(ledger: Ledger, plan: str) -> str:
    return f"spanlake.{ledger.manifest['id']}.{plan.removesuffix('.parquet')}"


def _rows(ledger: Ledger, units: Sequence[Unit], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for unit in units:
        path = ledger.output.child(unit.name + SUFFIX)
        with (
            ledger.output.filesystem.open_input_file(path) as source,
            open_streamed(source) as parquet,
        ):
            if footer_of(parquet.metadata, unit, ledger.request_digest) is None:
                raise ShortfallError(f"{path} is not the committed unit: run `spanlake audit`")
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=schema.names):
                yield batch.select(schema.names).cast(schema)
