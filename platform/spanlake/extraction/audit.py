"""The proof: every source row stands exactly once in an output, or what is wrong with it."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.ledger import SUFFIX, Ledger, files_in
from spanlake.extraction.plan import Unit, units_of
from spanlake.extraction.store import read_footer
from spanlake.extraction.unit import unit_footer

_FILES_AT_ONCE = 8
_UNITS_AT_ONCE = 1024
_BATCH_ROWS = 4096


@dataclass
class Audit:
    """What an output holds, counted from its data, and each problem as a sentence."""

    source_rows: int = 0
    output_rows: int = 0  # that a reader of all its Parquet files would see
    failed_rows: int = 0
    missing_rows: int = 0
    duplicate_rows: int = 0
    foreign_rows: int = 0  # in files that hold no unit of this output as it was committed
    by_label: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

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
    """Compare the files of an output with its plan. Each is read whole, and its checksums are verified."""
    result = Audit(by_label=Counter(dict.fromkeys(ledger.manifest["settings"]["labels"], 0)))
    files = dict(files_in(ledger.output))
    sources: set[str] = set()  # digests of the planned source files
    absent: set[str] = set()  # names of units without a file of their own
    strangers: list[_File] = []
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for units in _chunks(units_of(ledger.plan), _UNITS_AT_ONCE):
            infos = [files.pop(unit.name + SUFFIX, None) for unit in units]
            for unit, found in zip(units, pool.map(lambda info: info and _read_file(ledger, info), infos), strict=True):
                sources.add(unit.digest)
                result.source_rows += unit.rows
                if found and _holds(ledger, unit, found):
                    _add_unit(result, found)
                    continue
                absent.add(unit.name)
                result.missing_rows += unit.rows
                result.problems.append(f"missing: {unit.describe()}")
                strangers += [found] if found else []
        strangers += pool.map(lambda info: _read_file(ledger, info), files.values())
    for file in strangers:
        _add_stranger(result, file, sources, absent)
    return result


def _chunks(units: Iterator[Unit], size: int) -> Iterator[list[Unit]]:
    while chunk := list(islice(units, size)):
        yield chunk


@dataclass
class _File:
    """What stands in an output under some name."""

    name: str
    unreadable: str | None = None  # why, if so; what follows is then empty
    rows: int = 0
    failed_rows: int = 0
    by_label: Counter[str] = field(default_factory=Counter)
    footer: dict[str, Any] = field(default_factory=dict)  # what a unit says about itself


def _read_file(ledger: Ledger, info: fs.FileInfo) -> _File:
    if info.type != fs.FileType.File:
        return _File(info.base_name, unreadable="it is not a file")
    try:
        return _count(ledger, info)
    except (OSError, UserError, ValueError, pa.ArrowException) as error:
        return _File(info.base_name, unreadable=one_line(error))


def _count(ledger: Ledger, info: fs.FileInfo) -> _File:
    filesystem = ledger.output.filesystem
    footer = read_footer(filesystem, info.path)
    if not footer.schema.equals(ledger.schema):
        return _File(info.base_name, rows=footer.metadata.num_rows)
    file = _File(info.base_name, footer=unit_footer(footer.metadata) or {})
    source = filesystem.open_input_file(info.path)
    with pq.ParquetFile(source, metadata=footer.metadata, page_checksum_verification=True) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
            labels = pc.struct_field(pc.list_flatten(batch.column("entities")), "label")
            file.rows += batch.num_rows
            file.failed_rows += batch.num_rows - batch.column("error").null_count
            file.by_label.update({item["values"]: item["counts"] for item in pc.value_counts(labels).to_pylist()})
    source.close()
    return file


def _holds(ledger: Ledger, unit: Unit, file: _File) -> bool:
    """Whether a file is the unit as it was committed: by its footer, and by its data."""
    said = file.footer
    return (
        said.get("unit") == unit.name
        and said.get("run") == ledger.run
        and said.get("failed_rows") == file.failed_rows
        and Counter(said.get("by_label")) == file.by_label  # a label that is not found counts as zero
        and said.get("rows") == file.rows == unit.rows
    )


def _add_unit(result: Audit, file: _File) -> None:
    result.output_rows += file.rows
    result.failed_rows += file.failed_rows
    result.by_label.update(file.by_label)


def _add_stranger(result: Audit, file: _File, sources: set[str], absent: set[str]) -> None:
    """A file that is not the unit of its name."""
    result.output_rows += file.rows
    unit = file.footer.get("unit")
    if file.unreadable is not None:
        result.problems.append(f"unreadable: {file.name} ({file.unreadable})")
    elif file.footer.get("source", {}).get("digest") in sources and unit not in absent:
        result.duplicate_rows += file.rows
        result.problems.append(f"duplicate: {file.name} holds rows again that stand in unit {unit}")
    else:
        result.foreign_rows += file.rows
        result.problems.append(f"foreign: {file.name} is no unit of this output as it was committed")
