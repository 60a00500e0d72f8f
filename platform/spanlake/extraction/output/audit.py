"""Proves that an output has every source row exactly once, or says what is wrong with it."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.ahead import map_ahead
from spanlake.errors import one_line
from spanlake.extraction.output.layout import SOURCE_FILE, SOURCE_ROW
from spanlake.extraction.output.ledger import SUFFIX, Ledger, files_in, labels_of
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.output.rows import unit_footer
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.parquet import batch_rows, open_streamed

_FILES_AT_ONCE = 8
_BATCH_ROWS = 4096
_WHOLE_BYTES = 4 << 20  # a file up to this size is read with one request


@dataclass
class Audit:
    """Counts of an output, made from its data, and each problem as a sentence."""

    source_rows: int = 0
    output_rows: int = 0  # in all its Parquet files together
    failed_rows: int = 0
    missing_rows: int = 0
    duplicate_rows: int = 0
    foreign_rows: int = 0  # in files that are not a committed unit of this output
    by_label: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # the units that have a file of their name with other content

    @property
    def complete(self) -> bool:
        return not self.problems

    def as_json(self, model: dict[str, str]) -> dict[str, Any]:
        return {
            "complete": self.complete,
            "source_rows": self.source_rows,
            "output_rows": self.output_rows,
            "failed_rows": self.failed_rows,
            "missing_rows": self.missing_rows,
            "duplicate_rows": self.duplicate_rows,
            "foreign_rows": self.foreign_rows,
            "entities": sum(self.by_label.values()),
            "by_label": dict(self.by_label),
            "problems": len(self.problems),
            "model": model,
        }


def audit(ledger: Ledger) -> Audit:
    """Compares the files of an output with its plan. Reads each file completely and verifies its checksums."""
    result = Audit(by_label=Counter(dict.fromkeys(labels_of(ledger.manifest), 0)))
    files = dict(files_in(ledger.output))
    sources: set[str] = set()  # digests of the planned source files
    absent: set[str] = set()  # names of units without a file of their own
    strangers: list[_File] = []
    planned = ((unit, files.pop(unit.name + SUFFIX, None)) for unit in units_of(ledger.plan))

    def read(pair: tuple[Unit, fs.FileInfo | None]) -> tuple[Unit, _File | None]:
        unit, info = pair
        return unit, _read_file(ledger, info) if info else None

    for unit, found in map_ahead(read, planned, _FILES_AT_ONCE):
        sources.add(unit.digest)
        result.source_rows += unit.rows
        if found and _holds(ledger, unit, found):
            _add_unit(result, found)
            continue
        absent.add(unit.name)
        result.missing_rows += unit.rows
        result.problems.append(f"missing: {unit.describe()}")
        if found:
            strangers.append(found)
            result.damaged.append(unit.name)
    strangers += map_ahead(partial(_read_file, ledger), files.values(), _FILES_AT_ONCE)
    for file in strangers:
        _add_stranger(result, file, sources, absent)
    return result


@dataclass
class _File:
    """The content of one file in an output."""

    name: str
    unreadable: str | None = None  # the reason, if it cannot be read; the other fields are then empty
    rows: int = 0  # of the source, if the file is a unit; a row without mentions has no row in the layout mentions
    failed_rows: int = 0
    by_label: Counter[str] = field(default_factory=Counter)
    footer: dict[str, Any] = field(default_factory=dict)  # what the unit records about itself


def _read_file(ledger: Ledger, info: fs.FileInfo) -> _File:
    if info.type != fs.FileType.File:
        return _File(info.base_name, unreadable="it is not a file")
    try:
        return _count(ledger, info)
    except (OSError, ValueError, pa.ArrowException) as error:
        return _File(info.base_name, unreadable=one_line(error))


def _count(ledger: Ledger, info: fs.FileInfo) -> _File:
    with ledger.output.filesystem.open_input_file(info.path) as stream:
        if info.size <= _WHOLE_BYTES:
            opened = pq.ParquetFile(pa.BufferReader(stream.read()), page_checksum_verification=True)
        else:
            opened = open_streamed(stream)
        with opened as parquet:
            return _count_rows(ledger, info.base_name, parquet)


def _count_rows(ledger: Ledger, name: str, parquet: pq.ParquetFile) -> _File:
    if not parquet.schema_arrow.equals(ledger.schema):
        return _File(name, rows=parquet.metadata.num_rows)
    file = _File(name, footer=unit_footer(parquet.metadata) or {})
    mentions = ledger.manifest["layout"]["kind"] == "mentions"
    misplaced = 0
    for batch in parquet.iter_batches(batch_rows(parquet.metadata, _BATCH_ROWS), use_threads=False):
        labels = batch.column("label") if mentions else _labels(batch.column("entities"))
        misplaced += _misplaced(batch, file.footer) if mentions else 0
        file.rows += batch.num_rows
        file.failed_rows += batch.num_rows - batch.column("error").null_count
        counted = pc.value_counts(pc.drop_null(labels)).to_pylist()
        file.by_label.update({item["values"]: item["counts"] for item in counted})
    if mentions:
        _count_by_footer(file, misplaced)
    return file


def _count_by_footer(file: _File, misplaced: int) -> None:
    """Takes the number of source rows from the footer, which alone knows of rows without mentions.

    If a mention contradicts the footer, the file is not a unit.
    """
    if misplaced:
        file.footer = {}
    elif "rows" in file.footer:
        file.rows = file.footer["rows"]


def _labels(entities: pa.Array) -> pa.Array:
    return pc.struct_field(pc.list_flatten(entities), "label")


def _misplaced(batch: pa.RecordBatch, footer: dict[str, Any]) -> int:
    """Returns how many mentions have a source file or row outside the unit that the footer names."""
    source = footer.get("source", {})
    first, rows = source.get("first", 0), source.get("span", source.get("rows", 0))
    place = batch.column(SOURCE_ROW)
    inside = pc.and_(pc.greater_equal(place, first), pc.less(place, first + rows))
    right = pc.and_(inside, pc.equal(batch.column(SOURCE_FILE), pa.scalar(source.get("path"), pa.string())))
    return batch.num_rows - pc.sum(pc.fill_null(right, False)).as_py() if batch.num_rows else 0


def _holds(ledger: Ledger, unit: Unit, file: _File) -> bool:
    """Returns whether a file is the committed unit, by its footer and by its data."""
    said = file.footer
    return (
        said.get("unit") == unit.name
        and said.get("run") == ledger.request_digest
        and said.get("failed_rows") == file.failed_rows
        and Counter(said.get("by_label")) == file.by_label  # a label that is not found counts as zero
        and said.get("rows") == file.rows == unit.rows
    )


def _add_unit(result: Audit, file: _File) -> None:
    result.output_rows += file.rows
    result.failed_rows += file.failed_rows
    result.by_label.update(file.by_label)


def _add_stranger(result: Audit, file: _File, sources: set[str], absent: set[str]) -> None:
    """Counts a file that is not the unit of its name, and adds the problem."""
    result.output_rows += file.rows
    unit = file.footer.get("unit")
    if file.unreadable is not None:
        result.problems.append(f"unreadable: {file.name} ({file.unreadable})")
    elif file.footer.get("source", {}).get("digest") in sources and unit not in absent:
        result.duplicate_rows += file.rows
        result.problems.append(f"duplicate: {file.name} repeats the rows of unit {unit}")
    else:
        result.foreign_rows += file.rows
        result.problems.append(f"foreign: {file.name} is not a committed unit of this output")
