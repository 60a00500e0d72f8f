"""The rows of a unit, read in batches of bounded size."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.errors import SpanlakeError, UserError, one_line
from spanlake.extraction.plan import Unit, file_digest
from spanlake.extraction.store import Place, read_footer

BATCH_ROWS = 512  # rows of a batch at most
BATCH_BYTES = 16 << 20  # and about so many bytes, by the footer's account of the file

_BUFFER_BYTES = 4 << 20  # read ahead, per column


class SourceReadError(SpanlakeError):
    """Rows that were planned cannot be read: the file is gone, has changed, or is damaged."""


class RowReader:
    """Reads units of one source. A unit that follows the last one in its file goes on from there:

    so units cut out of one large row group do not decode it from its start each time.
    """

    def __init__(self, root: Place) -> None:
        self._root = root
        self._file: pq.ParquetFile | None = None
        self._digest = ""
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._held: pa.RecordBatch | None = None  # read and not given out yet
        self._next_row = 0  # in the file: the first row of what is held or comes next

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows in order, with the columns of its file, cut in the same places whatever was read before:

        scores depend in their last bits on which rows are read together.
        Raises: SourceReadError, after which the reader can still read other units.
        """
        try:
            self._seek(unit)
            last = unit.first + unit.rows
            while self._next_row < last:
                assert self._file is not None
                yield self._take_all(min(_batch_rows(self._file.metadata), last - self._next_row))
        except (OSError, UserError, pa.ArrowException) as error:
            self.close()
            raise SourceReadError(f"{unit.describe()} cannot be read ({one_line(error)})") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close(force=True)
        self._file, self._digest = None, ""
        self._batches, self._held, self._next_row = None, None, 0

    def _seek(self, unit: Unit) -> None:
        if self._digest != unit.digest:
            self._open(unit)
        if not unit.rows:
            return
        group, group_first = self._group_of(unit.first)
        if self._batches is None or not group_first <= self._next_row <= unit.first:
            self._read_from(group, group_first)
        while self._next_row < unit.first:
            self._take(unit.first - self._next_row)  # rows of the group that other units read

    def _open(self, unit: Unit) -> None:
        self.close()
        path = self._root.child(unit.path)
        footer = read_footer(self._root.filesystem, path)
        if file_digest(unit.path, footer) != unit.digest:
            raise UserError("the file has changed since it was planned")
        self._file = pq.ParquetFile(
            self._root.filesystem.open_input_file(path),
            metadata=footer.metadata,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        self._digest = unit.digest

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and the group's first row."""
        assert self._file is not None
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            stop = first + self._file.metadata.row_group(group).num_rows
            if row < stop:
                return group, first
            first = stop
        raise UserError(f"the file ends before row {row:,}")

    def _read_from(self, group: int, group_first: int) -> None:
        assert self._file is not None
        groups = list(range(group, self._file.metadata.num_row_groups))
        self._batches = self._file.iter_batches(_batch_rows(self._file.metadata), row_groups=groups, use_threads=False)
        self._held, self._next_row = None, group_first

    def _take_all(self, count: int) -> pa.RecordBatch:
        """The next `count` rows."""
        parts = [self._take(count)]
        while missing := count - sum(part.num_rows for part in parts):
            parts.append(self._take(missing))
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def _take(self, limit: int) -> pa.RecordBatch:
        """Up to `limit` rows of what comes next; the rest of a batch is held for the next call."""
        batch = self._held
        if batch is None and self._batches is not None:
            batch = next(self._batches, None)
        if batch is None:
            raise UserError(f"the file ends before row {self._next_row:,}")
        self._held = batch.slice(limit) if batch.num_rows > limit else None
        self._next_row += min(limit, batch.num_rows)
        return batch.slice(0, limit)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, size)))
