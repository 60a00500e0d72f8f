"""The changes of a table between two snapshots as a source: rows that were added, and rows that were deleted.

The table's log names the files of both snapshots. Files that are in both, with the same deleted rows, are not opened.
Writers often rewrite a whole file to change one row, so rows that are equal in the added and the removed files cancel.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from spanlake.errors import UserError
from spanlake.extraction.source.model import (
    CHANGE,
    DELETED,
    INSERTED,
    Constant,
    Source,
    SourceFile,
    SourceReadError,
    Unit,
    Wanted,
    sort_files,
)
from spanlake.extraction.source.parquet import ParquetReader
from spanlake.extraction.source.selection import pack
from spanlake.extraction.source.tables import (
    Snapshot,
    TableFile,
    TableName,
    check_ancestor,
    describe_files,
    open_snapshot,
    schema_of,
)
from spanlake.extraction.source.texts import is_text
from spanlake.storage import Place

_FILES_AT_ONCE = 8
_DIGEST_BYTES = 16


def read_changes(name: TableName, since: int | None, text_columns: tuple[str, ...], wanted: Wanted) -> Source:
    """Returns the rows that were added to a table and deleted from it after a version or snapshot.

    The column CHANGE says which. A changed row is deleted and added. Without `since`, all rows are added.
    Raises UserError for a table that cannot be read, and for a version that does not come before the one to read.
    """
    new = open_snapshot(name)
    schema = schema_of(new, text_columns, wanted)
    if CHANGE in new.schema.names:
        raise UserError(f"{name} has a column called {CHANGE}, which --since adds: rename it in the table.")
    if since is None:
        added, removed = describe_files(new, schema, new.files), []
    else:
        check_ancestor(new.name, since)
        old = open_snapshot(replace(name, version=since), columns_of=new)
        added = describe_files(new, schema, _differing(new, old))
        removed = describe_files(old, schema, _differing(old, new))
        added, removed = _without_common_deletes(added, removed)
        added, removed = _uncancelled(new.root, schema, added, removed)
    files = [*(_marked(file, INSERTED) for file in added), *(_marked(file, DELETED) for file in removed)]
    if not files:  # a file of which no row is read tells the columns of the output
        files = [
            _marked(_kept(file, np.zeros(file.rows, bool)), INSERTED)
            for file in describe_files(new, schema, new.files[:1])
        ]
    marked = schema.append(pa.field(CHANGE, pa.string()))
    return Source(
        str(new.name), new.root, sort_files(files), marked, (), deep=True, format="table", changes=True, since=since
    )


def is_deleted(unit: Unit) -> bool:
    """Returns whether the rows of a unit were deleted from their table."""
    return unit.columns.get(CHANGE) == Constant(DELETED)


def _marked(file: SourceFile, change: str) -> SourceFile:
    return replace(file, columns={**file.columns, CHANGE: Constant(change)})


def _kept(file: SourceFile, mask: np.ndarray) -> SourceFile:
    return replace(file, kept=pack(mask))


# --- files --------------------------------------------------------------------------------------------------------


def _differing(snapshot: Snapshot, other: Snapshot) -> list[TableFile]:
    """Returns the files that the other snapshot does not have with the same deleted rows."""
    known = {file.path: file for file in other.files}
    return [file for file in snapshot.files if file.path not in known or not file.same_deletes(known[file.path])]


def _without_common_deletes(
    added: Sequence[SourceFile], removed: Sequence[SourceFile]
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Leaves out the rows that a file has in both snapshots. Files without other rows are left out too."""
    masks = {file.path: file.mask() for file in removed}
    others = {file.path: file.mask() for file in added}
    new = [_kept(file, file.mask() & ~masks.get(file.path, np.zeros(file.rows, bool))) for file in added]
    old = [_kept(file, file.mask() & ~others.get(file.path, np.zeros(file.rows, bool))) for file in removed]
    return [file for file in new if file.kept_rows], [file for file in old if file.kept_rows]


# --- rows ---------------------------------------------------------------------------------------------------------


def _uncancelled(
    root: Place, schema: pa.Schema, added: list[SourceFile], removed: list[SourceFile]
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Leaves out equal rows, as many on both sides. Needs 16 bytes of memory for each row of the files.

    Raises UserError if rows of a file were both deleted and restored, because a file has only one change.
    """
    if added and removed:
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            digests = list(pool.map(partial(_digests, root, schema), [*added, *removed]))
        _, ids = np.unique(np.concatenate(digests), return_inverse=True)
        rows = sum(len(digest) for digest in digests[: len(added)])
        surplus = [*_parts(_surplus(ids[:rows], ids[rows:]), added), *_parts(_surplus(ids[rows:], ids[:rows]), removed)]
        left = [_kept_part(file, mask) for file, mask in zip([*added, *removed], surplus, strict=True)]
        added = [file for file in left[: len(added)] if file.kept_rows]
        removed = [file for file in left[len(surplus) - len(removed) :] if file.kept_rows]
    both = {file.path for file in added} & {file.path for file in removed}
    if both:
        raise UserError(
            f"{min(both)} has rows that were deleted and rows that were restored since: extract without --since."
        )
    return added, removed


def _parts(mask: np.ndarray, files: Sequence[SourceFile]) -> list[np.ndarray]:
    return np.split(mask, np.cumsum([file.kept_rows for file in files])[:-1])


def _kept_part(file: SourceFile, part: np.ndarray) -> SourceFile:
    """Returns the file with some of its kept rows. `part` has one item for each of them."""
    mask = file.mask()
    mask[mask] = part
    return _kept(file, mask)


def _surplus(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which items have no counterpart among the others. Of equal items, the first ones have counterparts."""
    counts = np.bincount(others, minlength=int(ids.max(initial=0)) + 1)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    rank = np.arange(len(ids)) - np.searchsorted(ordered, ordered)
    mask = np.empty(len(ids), bool)
    mask[order] = rank >= counts[ordered]
    return mask


def _digests(root: Place, schema: pa.Schema, file: SourceFile) -> np.ndarray:
    """Returns a digest for each kept row of a file."""
    found: list[bytes] = []
    try:
        for batch in ParquetReader(root, schema).read(file.whole()):
            for row in _rows(batch):
                content = f"{file.path}\n{len(found)}" if row is None else repr(row)
                found.append(blake2b(content.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest())
    except SourceReadError as error:
        raise UserError(f"{error}: was the table vacuumed or expired?") from error
    return np.frombuffer(b"".join(found), f"S{_DIGEST_BYTES}")


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...] | None]:
    """Yields the values of each row; None for a row with strings that are not UTF-8 inside other values."""
    columns = [column.cast(pa.large_binary()) if is_text(column.type) else column for column in batch.columns]
    for row in range(batch.num_rows):
        try:
            yield tuple(column[row].as_py() for column in columns)
        except UnicodeDecodeError:
            yield None
