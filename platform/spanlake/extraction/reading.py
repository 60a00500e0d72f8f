"""Reading back what an output holds."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.extraction.ledger import SUFFIX, Ledger
from spanlake.extraction.plan import Unit, units_of

_BATCH_ROWS = 1024


def committed_units(ledger: Ledger) -> Iterator[Unit]:
    """The committed units, in the order of the plan."""
    committed = ledger.committed()
    return (unit for unit in units_of(ledger.plan) if unit.name in committed)


def batches(ledger: Ledger, unit: Unit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a committed unit, in bounded memory."""
    path = ledger.output.child(unit.name + SUFFIX)
    with ledger.output.filesystem.open_input_file(path) as source:
        yield from pq.ParquetFile(source).iter_batches(_BATCH_ROWS, columns=list(columns))
