"""Iceberg's equality deletes: a row is deleted if its values in some columns equal those of a row in a delete file.

A delete file deletes rows of older data files in its own partition, or in every partition if its partition spec has no
fields. A null equals a null.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanlake.errors import UserError, one_line
from spanlake.extraction.source.table_types import plain

FIELD_ID = b"PARQUET:field_id"  # in the metadata of a field in a Parquet file's schema


class DeletedKeys:
    """The keys that are deleted from one partition, or from all, in some columns. Threads may share it."""

    def __init__(self, schema: pa.Schema, files: Iterable[tuple[int, str]], io: Any) -> None:
        """`schema` has the columns with field ids. `files` are the sequence numbers and paths of delete files.

        They are read by `io`, pyiceberg's `FileIO`, when the first row is looked up.
        """
        self.schema = schema
        self._files = sorted(files)
        self._io = io
        self._lock = Lock()
        self._lookup: _Lookup | None = None
        self._digests = [""]  # of the files from each one on
        for _, path in reversed(self._files):
            self._digests.insert(0, sha256(f"{path}\n{self._digests[0]}".encode()).hexdigest())

    def newer_than(self, sequence: int) -> "NewerKeys | None":
        """Returns the keys that are deleted from a data file with this sequence number; None without any."""
        digest = self._digests[bisect_right(self._files, sequence, key=lambda file: file[0])]
        return NewerKeys(self, sequence, digest) if digest else None

    def newest(self, rows: pa.Table) -> np.ndarray:
        """Returns the sequence number of the newest delete of each row's key; -1 for a row without any.

        Raises UserError for a delete file that cannot be read.
        """
        with self._lock:
            if self._lookup is None:
                tables = [self._read(path) for _, path in self._files]
                sequences = np.repeat([sequence for sequence, _ in self._files], [len(table) for table in tables])
                self._lookup = _Lookup(pa.concat_tables(tables), sequences)
        return self._lookup.newest(rows)

    def _read(self, path: str) -> pa.Table:
        try:
            with self._io.new_input(path).open() as stream:
                found = pq.read_table(stream)
            ids = [(field.metadata or {}).get(FIELD_ID) for field in found.schema]
            places = [
                ids.index(field.metadata[FIELD_ID]) if any(ids) else found.schema.names.index(field.name)
                for field in self.schema
            ]
            return found.select(places).rename_columns(self.schema.names).cast(self.schema)
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError, if a column is missing
            raise UserError(f"The delete file {path} cannot be read ({one_line(error)}).") from error


@dataclass(frozen=True)
class NewerKeys:
    """The keys that are deleted from the data files with a sequence number."""

    keys: DeletedKeys
    sequence: int
    digest: str  # of the delete files

    def deleted(self, rows: pa.Table) -> np.ndarray:
        """Returns a mask of the rows that are deleted. Raises UserError as `DeletedKeys.newest` does."""
        return self.keys.newest(rows) > self.sequence


class EqualityDeletes:
    """The equality deletes of a snapshot, by the data files from which they delete rows."""

    def __init__(self, name: str, table: Any, schema: Any, entries: Iterable[Any]) -> None:
        """`entries` are the manifest entries of the delete files, and `schema` is the one to read, of pyiceberg.

        Raises UserError for delete files in a format other than Parquet, and for keys inside structs.
        """
        found: dict[tuple[Any, tuple[int, ...]], list[tuple[int, str]]] = defaultdict(list)
        for entry in entries:
            file = entry.data_file
            if file.file_format.value.lower() != "parquet":
                raise UserError(
                    f"{name} has equality deletes in {file.file_format.value} files, and only Parquet can be read: "
                    "rewrite its data files (rewrite_data_files) first."
                )
            scope = None if table.specs()[file.spec_id].is_unpartitioned() else (file.spec_id, file.partition)
            found[scope, tuple(file.equality_ids)].append((entry.sequence_number or 0, file.file_path))
        self._by_scope: dict[Any, list[DeletedKeys]] = defaultdict(list)
        for (scope, ids), files in found.items():
            self._by_scope[scope].append(DeletedKeys(_schema(name, table, schema, ids), files, table.io))

    def of(self, entry: Any) -> tuple[NewerKeys, ...]:
        """Returns the keys that are deleted from the data file of a manifest entry."""
        scopes = (None, (entry.data_file.spec_id, entry.data_file.partition))
        keys = (keys.newer_than(entry.sequence_number or 0) for s in scopes for keys in self._by_scope.get(s, ()))
        return tuple(filter(None, keys))


def _schema(name: str, table: Any, schema: Any, ids: Sequence[int]) -> pa.Schema:
    """Returns the columns of these ids, with ids. A column that was dropped is in an earlier schema of the table."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.schema import Schema

    known = {field.field_id: field for each in [*table.schemas().values(), schema] for field in each.fields}
    if missing := [str(key) for key in ids if key not in known]:
        raise UserError(
            f"{name} has equality deletes by fields inside a struct (field id {', '.join(missing)}), which cannot be "
            "read: rewrite its data files (rewrite_data_files) first."
        )
    columns = schema_to_pyarrow(Schema(*(known[key] for key in ids)), include_field_ids=True)
    return plain(pa.schema([field.with_nullable(True) for field in columns]))


class _Lookup:
    """Finds keys of one or more columns. Equal keys have the same number, column by column."""

    def __init__(self, keys: pa.Table, sequences: np.ndarray) -> None:
        self._columns: list[tuple[pa.Array, np.ndarray]] = []  # different values, different pairs of numbers
        numbers = np.zeros(len(keys), np.int64)
        for column in keys.columns:
            values = pc.unique(_storage(column))
            pairs = numbers * len(values) + pc.index_in(_storage(column), values).to_numpy()
            known = np.unique(pairs)
            self._columns.append((values, known))
            numbers = np.searchsorted(known, pairs)
        self._newest = np.full(len(keys) + 1, -1, np.int64)
        np.maximum.at(self._newest, numbers, sequences)

    def newest(self, rows: pa.Table) -> np.ndarray:
        numbers, found = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for column, (values, known) in zip(rows.columns, self._columns, strict=True):
            index = pc.index_in(_storage(column), values)
            found &= index.is_valid().to_numpy()
            pairs = numbers * len(values) + index.fill_null(0).to_numpy()
            numbers = np.searchsorted(known, pairs)
            found &= np.isin(pairs, known)
        return np.where(found, self._newest[numbers], -1)


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the column, without its extension type (UUID), which Arrow cannot look up."""
    kind = column.type
    return column.cast(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else column
