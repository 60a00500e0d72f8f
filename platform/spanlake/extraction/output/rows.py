"""Reads the rows of an output back."""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.extraction.output.ledger import SUFFIX, Ledger
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.parquet import open_streamed

FOOTER_KEY = b"spanlake"  # in a file's metadata: the JSON that a committed unit records about itself

_BATCH_ROWS = 1024


def committed_units(ledger: Ledger) -> Iterator[Unit]:
    """Returns the committed units, in the order of the plan."""
    committed = ledger.committed()
    return (unit for unit in units_of(ledger.plan) if unit.name in committed)


def batches(ledger: Ledger, unit: Unit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a committed unit, in bounded memory."""
    path = ledger.output.child(unit.name + SUFFIX)
    with ledger.output.filesystem.open_input_file(path) as source:
        yield from open_streamed(source).iter_batches(_BATCH_ROWS, columns=list(columns))


def footer_of(metadata: pq.FileMetaData, unit: Unit, request_digest: str) -> dict | None:
    """Returns what a unit of a request records about itself; None for a file that is not this unit."""
    found = unit_footer(metadata) or {}
    return found if (found.get("unit"), found.get("run")) == (unit.name, request_digest) else None


def unit_footer(metadata: pq.FileMetaData) -> dict | None:
    """Returns what a committed unit records about itself; None for any other Parquet file."""
    content = (metadata.metadata or {}).get(FOOTER_KEY)
    try:
        found = json.loads(content) if content is not None else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
