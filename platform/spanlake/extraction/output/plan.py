"""Cuts a source into units of work, and keeps them in the table of a plan."""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import merge
from itertools import groupby, islice

import numpy as np
import pyarrow as pa

from spanlake.extraction.source.model import ColumnPlaces, Constant, FileColumn, SourceFile, Unit
from spanlake.extraction.source.selection import pack, unpack

UNIT_ROWS = 2048  # rows of a unit in a large source, by default
SMALL_UNIT_ROWS = 64  # in a small source, so that several workers have work
UNIT_BYTES = 256 << 20  # the most uncompressed bytes of a unit
_CHUNK_UNITS = 4096  # of a plan that are Python objects at the same time

_PLAN_SCHEMA = pa.schema(
    [
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("size", pa.int64()),
        ("digest", pa.dictionary(pa.int32(), pa.string())),
        ("first", pa.int64()),
        ("rows", pa.int64()),
        ("columns", pa.dictionary(pa.int32(), pa.string())),
        ("kept", pa.binary()),
    ]
)


# --- cutting ------------------------------------------------------------------------------------------------------


def default_unit_rows(source_rows: int) -> int:
    """Returns the default rows of a unit: so few that even a small source has tens of units."""
    return min(UNIT_ROWS, max(SMALL_UNIT_ROWS, source_rows // 64))


def cut(file: SourceFile, unit_rows: int) -> Iterator[Unit]:
    """Yields the units of one file, in order. Together they have each row of the source once.

    A file without rows is one unit without rows. A file whose rows are all left out has no unit. A unit has whole row
    groups that fit in `unit_rows` (fewer if rows are large). A larger row group is cut into even parts.
    """
    limit = min(unit_rows, max(1, UNIT_BYTES * file.rows // max(1, file.bytes))) if file.rows else unit_rows
    if file.kept:
        yield from _cut_kept(file, limit)
        return
    first = 0
    for rows in _pieces(file.groups, limit) if file.rows else [0]:
        yield Unit(file.path, file.size, file.digest, first, rows, file.columns)
        first += rows


def _cut_kept(file: SourceFile, limit: int) -> Iterator[Unit]:
    mask = unpack(file.kept)
    places = np.flatnonzero(mask)
    ends = np.searchsorted(places, np.cumsum(file.groups))  # the end of each row group, counted in kept rows
    done = 0
    for rows in _pieces(np.diff(ends, prepend=0).tolist(), limit):
        first, last = int(places[done]), int(places[done + rows - 1])
        yield Unit(file.path, file.size, file.digest, first, rows, file.columns, pack(mask[first : last + 1]))
        done += rows


def _pieces(groups: Iterable[int], limit: int) -> Iterator[int]:
    held = 0
    for group in groups:
        if held and held + group > limit:
            yield held
            held = 0
        held += group
        if held > limit:  # a single group that is too large
            count = -(-held // limit)
            yield from (held * (index + 1) // count - held * index // count for index in range(count))
            held = 0
    if held:
        yield held


def plan_table(units: Iterable[Unit]) -> pa.Table:
    """Returns units as a table with a few tens of bytes for each, so that millions fit into memory."""
    waiting = iter(units)
    chunks = []
    while chunk := list(islice(waiting, _CHUNK_UNITS)):
        columns = {
            name: [_encoded(unit.columns) if name == "columns" else getattr(unit, name) for unit in chunk]
            for name in _PLAN_SCHEMA.names
        }
        chunks.append(pa.table(columns, schema=_PLAN_SCHEMA))
    return pa.concat_tables([_PLAN_SCHEMA.empty_table(), *chunks])


def merged_plan(one: pa.Table, two: pa.Table) -> pa.Table:
    """Returns the units of two plans in the order of their names. Each plan must have this order itself."""
    return plan_table(merge(units_of(one), units_of(two), key=lambda unit: unit.name))


def complete_plan(table: pa.Table) -> pa.Table:
    """Returns a plan with every column. A plan of an earlier version lacks the last one, because it keeps all rows."""
    if "kept" in table.column_names:
        return table
    return table.append_column("kept", pa.array([b""] * table.num_rows, pa.binary()))


def units_of(table: pa.Table) -> Iterator[Unit]:
    """Yields the units in a plan table, or in a part of one, in its order."""
    for batch in table.to_batches(max_chunksize=_CHUNK_UNITS):
        columns = [batch.column(name).to_pylist() for name in _PLAN_SCHEMA.names]
        for path, size, digest, first, rows, places, kept in zip(*columns, strict=True):
            yield Unit(path, size, digest, first, rows, _decoded(places), kept)


def files_of(table: pa.Table) -> Iterator[tuple[Unit, int]]:
    """Yields for each file of a plan its first unit, and the number of rows in all its units."""
    for _, group in groupby(units_of(table), key=lambda unit: unit.path):
        units = list(group)
        yield units[0], sum(unit.rows for unit in units)


def _encoded(places: ColumnPlaces) -> str:
    """Returns the places of columns as the plan stores them: JSON, or an empty string."""
    as_json = {
        column: {"value": place.value} if isinstance(place, Constant) else {"name": place.name}
        for column, place in places.items()
    }
    return json.dumps(as_json, ensure_ascii=False) if as_json else ""


@lru_cache(maxsize=64)  # the units of a file have the same places
def _decoded(places: str) -> ColumnPlaces:
    as_json = json.loads(places) if places else {}
    return {
        column: Constant(place["value"]) if "value" in place else FileColumn(place["name"])
        for column, place in as_json.items()
    }
