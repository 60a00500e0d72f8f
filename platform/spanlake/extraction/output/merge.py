"""Checks the keys by which rows are merged into a table: each key once, and never null."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.model import CHANGE, DELETED, INSERTED, Source, SourceReadError
from spanlake.extraction.source.open import SourceHandle

Key = tuple[Any, ...]


def check_source_keys(source: Source, text_columns: tuple[str, ...], keys: Sequence[str]) -> None:
    """Reads the key columns of a source. Raises UserError if a key is null, or if two rows have the same key."""
    columns = [source.schema.field(name) for name in source.schema.names if name in keys or name == CHANGE]
    reader = SourceHandle(source.root, source.format, pa.schema(columns), text_columns).open()

    def batches() -> Iterator[pa.RecordBatch]:
        for file in source.files:
            with suppress(SourceReadError):  # the unit with these rows reports it
                yield from reader.read(file.whole())

    replaced_keys(batches(), keys)


def replaced_keys(batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> set[Key]:
    """Returns the keys of rows that are deleted and added again. Holds the keys in memory.

    Raises UserError if a key is null or not valid UTF-8, or if two added rows have the same key.
    """
    added: set[Key] = set()
    deleted: set[Key] = set()
    for batch in batches:
        gone = _deleted(batch)
        for row, key in enumerate(_keys(batch, keys)):
            if None in key:
                raise UserError(f"--merge-on {','.join(keys)} is null in a row: choose a key that every row has.")
            if gone[row]:
                deleted.add(key)
            elif key in added:
                shown = ", ".join(map(str, key))
                raise UserError(
                    f"--merge-on {','.join(keys)} is {shown} in two rows: choose a key that each row has for itself."
                )
            else:
                added.add(key)
    return added & deleted


def without_replaced(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], replaced: set[Key]
) -> Iterator[pa.RecordBatch]:
    """Yields at most one row for each key, with the column CHANGE. `replaced` are keys of rows that are added again."""
    done = set(replaced)
    for batch in batches:
        gone = _deleted(batch)
        kept = [not is_gone for is_gone in gone]
        for row, key in enumerate(_keys(batch, keys) if any(gone) else []):
            if gone[row] and key not in done:
                kept[row] = True
                done.add(key)
        left = batch if all(kept) else batch.filter(pa.array(kept))
        if CHANGE not in left.schema.names:
            left = left.append_column(CHANGE, pa.array([INSERTED] * left.num_rows, pa.string()))
        yield left


def _keys(batch: pa.RecordBatch, keys: Sequence[str]) -> list[Key]:
    try:
        return list(zip(*(batch.column(key).to_pylist() for key in keys), strict=True))
    except UnicodeDecodeError as error:
        raise UserError(
            f"--merge-on {','.join(keys)} is not valid UTF-8 in a row ({one_line(error)}): choose another key, or "
            "correct it in the source."
        ) from error


def _deleted(batch: pa.RecordBatch) -> list[bool]:
    if CHANGE not in batch.schema.names:
        return [False] * batch.num_rows
    gone: list[bool] = pc.equal(batch.column(CHANGE), DELETED).to_pylist()
    return gone
