"""Chooses rows of a source: those that fulfil a condition, up to a limit, in the order of the source."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.bounds import constant_bounds, possible_groups
from spanlake.extraction.source.model import Source, SourceFile, Unit
from spanlake.extraction.source.open import SourceHandle
from spanlake.extraction.source.parquet import read_footer
from spanlake.extraction.source.selection import pack
from spanlake.extraction.source.texts import READ_ERROR
from spanlake.extraction.source.where import Where

_FILES_AT_ONCE = 16


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
    constants = partial(constant_bounds, source.schema, file)
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
    """Returns a mask of the rows in a Parquet file whose row groups may fulfil the condition.

    Reads the footer only if it was not judged when it was read for the plan.
    """
    possible = file.possible
    if possible is None:
        footer = read_footer(source.root.filesystem, source.root.child(file.path))
        possible = possible_groups(where.condition, source.schema, file, footer.metadata, footer.schema)
    parts = [np.full(rows, may_hold) for rows, may_hold in zip(file.groups, possible, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)
