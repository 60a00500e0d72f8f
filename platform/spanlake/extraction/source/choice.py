"""Chooses rows of a source: those that fulfil a condition, up to a limit, in the order of the source."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.condition import Bounds, BoundsOf, Path
from spanlake.extraction.source.model import Constant, FileColumn, Source, SourceFile, Unit
from spanlake.extraction.source.open import SourceHandle
from spanlake.extraction.source.parquet import read_footer
from spanlake.extraction.source.selection import pack
from spanlake.extraction.source.texts import READ_ERROR, type_at
from spanlake.extraction.source.where import Where
from spanlake.extraction.source.widening import decoded_type

_FILES_AT_ONCE = 16
_UNKNOWN = Bounds(None)


@dataclass(frozen=True)
class Choice:
    where: Where | None = None
    limit: int | None = None  # rows

    @property
    def columns(self) -> frozenset[str]:
        """Returns the columns of the source that the condition uses."""
        return self.where.columns if self.where else frozenset()

    def check(self, source: Source) -> None:
        """Raises UserError if the condition does not fit the columns of the source."""
        if self.where:
            self.where.condition.truth(pa.RecordBatch.from_pylist([], _columns(source, self.where)))

    def as_json(self) -> dict[str, str | int]:
        """Returns everything that determines the result; nothing if all rows are chosen."""
        where = {"where": self.where.text} if self.where else {}
        return where | ({} if self.limit is None else {"limit": self.limit})

    def rows(
        self, source: Source, files: Iterable[SourceFile], text_columns: tuple[str, ...], taken: int
    ) -> Iterator[SourceFile]:
        """Yields the files that have chosen rows, with only these rows. `taken` earlier rows count toward the limit.

        Raises UserError if a condition cannot be evaluated, and SourceReadError if its columns cannot be read.
        """
        left = self.limit - taken if self.limit is not None else None
        for file in self._matching(source, files, text_columns) if self.where else files:
            if left is not None and left <= 0:
                return
            chosen = file if left is None else _first_rows(file, left)
            if left is not None:
                left -= chosen.kept_rows
            yield chosen

    def _matching(
        self, source: Source, files: Iterable[SourceFile], text_columns: tuple[str, ...]
    ) -> Iterator[SourceFile]:
        assert self.where is not None
        match = partial(_match, source, self.where, text_columns)
        waiting = iter(files)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            while several := list(islice(waiting, _FILES_AT_ONCE)):  # in small groups, so that a limit ends the reading
                yield from (file for file in pool.map(match, several) if file is not None)


def _columns(source: Source, where: Where) -> pa.Schema:
    return pa.schema([source.schema.field(name) for name in source.schema.names if name in where.columns])


def _first_rows(file: SourceFile, count: int) -> SourceFile:
    if file.kept_rows <= count:
        return file
    mask = file.mask()
    mask[np.flatnonzero(mask)[count:]] = False
    return replace(file, kept=pack(mask))


# --- the condition ------------------------------------------------------------------------------------------------


def _match(source: Source, where: Where, text_columns: tuple[str, ...], file: SourceFile) -> SourceFile | None:
    """Returns the file with the rows that fulfil the condition; None if there are none.

    Files and row groups whose partitions or statistics exclude such rows are not read.
    """
    constants = partial(_constant_bounds, source.schema, file)
    if not where.condition.may_hold(constants):
        return None
    mask = file.mask()
    if source.format in ("parquet", "table"):
        mask &= _possible(source, where, file)
    if not mask.any():
        return None
    unit = Unit(file.path, file.size, file.digest, 0, int(mask.sum()), file.columns, pack(mask))
    reader = SourceHandle(source.root, source.format, _columns(source, where), text_columns).open()
    truths = [_truth(where, batch, file) for batch in reader.read(unit)]
    mask[mask] = np.concatenate(truths) if truths else False
    return replace(file, kept=pack(mask)) if mask.any() else None


def _truth(where: Where, batch: pa.RecordBatch, file: SourceFile) -> np.ndarray:
    try:
        truth = pc.fill_null(where.condition.truth(batch), False)
    except pa.ArrowException as error:
        raise UserError(
            f"--where cannot be evaluated in {file.path} ({one_line(error)}): use other columns."
        ) from error
    found = truth.to_numpy(zero_copy_only=False)
    if READ_ERROR in batch.schema.names:
        found = found | _unread(batch)
    return found


def _unread(batch: pa.RecordBatch) -> np.ndarray:
    """Returns which rows are unreadable lines. They are chosen, so that the output has their errors."""
    lacking = [column.is_null().to_numpy(zero_copy_only=False) for column in batch.drop_columns(READ_ERROR).columns]
    return np.logical_and.reduce([batch.column(READ_ERROR).is_valid().to_numpy(zero_copy_only=False), *lacking])


def _possible(source: Source, where: Where, file: SourceFile) -> np.ndarray:
    """Returns a mask of the rows in a Parquet file whose row groups may fulfil the condition."""
    footer = read_footer(source.root.filesystem, source.root.child(file.path))
    parts = [
        np.full(
            rows, where.condition.may_hold(_group_bounds(source.schema, file, footer.metadata, footer.schema, index))
        )
        for index, rows in enumerate(file.groups)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _constant_bounds(schema: pa.Schema, file: SourceFile, path: Path) -> Bounds:
    place = file.columns.get(path[0])
    if not isinstance(place, Constant) or len(path) > 1:
        return _UNKNOWN
    if place.value is None:
        return Bounds(None, has_values=False)
    value = pa.array([place.value], pa.string()).cast(schema.field(path[0]).type)
    return Bounds(pa.concat_arrays([value, value]), has_nulls=False)


def _group_bounds(
    schema: pa.Schema, file: SourceFile, metadata: pq.FileMetaData, held: pa.Schema, group: int
) -> BoundsOf:
    chunks = {}
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(group).column(index)
        chunks[chunk.path_in_schema] = chunk

    def bounds(path: Path) -> Bounds:
        place = file.columns.get(path[0])
        if isinstance(place, Constant):
            return _constant_bounds(schema, file, path)
        names = [place.name if isinstance(place, FileColumn) else path[0], *path[1:]]
        if names[0] not in held.names:
            return Bounds(None, has_values=False)
        chunk = chunks.get(".".join(names))
        return _UNKNOWN if chunk is None else _statistics(chunk, type_at(held, names), type_at(schema, path))

    return bounds


def _statistics(chunk: pq.ColumnChunkMetaData, held: pa.DataType | None, kind: pa.DataType | None) -> Bounds:
    found = chunk.statistics
    if found is None or held is None or kind is None:
        return _UNKNOWN
    nulls = found.null_count if found.has_null_count else None
    has_nulls, has_values = nulls != 0, nulls != chunk.num_values
    if not found.has_min_max or pa.types.is_floating(kind) and (found.min != found.min or found.max != found.max):
        return Bounds(None, has_nulls, has_values)
    try:
        ends = pa.array([found.min, found.max], decoded_type(held)).cast(decoded_type(kind))
    except (pa.ArrowException, ValueError, TypeError):  # pyarrow cannot decode these statistics
        return Bounds(None, has_nulls, has_values)
    return Bounds(ends, has_nulls, has_values)
