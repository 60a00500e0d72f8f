"""Finds the deleted rows that the data files of a table still contain, with the table's own library."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.errors import UserError
from spanlake.extraction.source.selection import Packed, pack

Deleted = dict[str, np.ndarray]  # path of a data file -> numbers of its deleted rows


def delta_deletes(table: Any) -> Deleted:
    """Returns the rows that the deletion vectors of a `DeltaTable` delete. Paths are as in its log."""
    root = table.table_uri.rstrip("/") + "/"
    vectors = pa.table(table.deletion_vectors())
    paths = [path.removeprefix(root) for path in vectors.column("filepath").to_pylist()]
    masks = [vector.values.to_numpy(zero_copy_only=False) for vector in vectors.column("selection_vector")]
    return {path: np.flatnonzero(~mask) for path, mask in zip(paths, masks, strict=True)}


def position_deletes(name: str, io: Any, files: Mapping[str, Iterable[Any]]) -> Deleted:
    """Returns the rows that position deletes and deletion vectors delete in the data files of an Iceberg table.

    `files` has the delete files of each data file, as pyiceberg's `DataFile`s.
    Raises UserError for delete files in a format other than Parquet and Puffin, and whatever pyiceberg and Arrow raise.
    """
    read: dict[str, Deleted] = {}
    deleted: Deleted = {}
    for path, delete_files in files.items():
        for file in delete_files:
            if file.file_path not in read:
                read[file.file_path] = _read_delete_file(name, io, file)
        parts = [read[file.file_path].get(path) for file in delete_files]
        deleted[path] = np.concatenate([np.empty(0, np.int64), *(part for part in parts if part is not None)])
    return deleted


def _read_delete_file(name: str, io: Any, file: Any) -> Deleted:
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    kind = file.file_format.value.lower()
    if kind not in ("parquet", "puffin"):
        raise UserError(
            f"{name} has position deletes in {kind} files, and only Parquet and Puffin can be read: "
            "rewrite its data files (rewrite_data_files) first."
        )
    with io.new_input(file.file_path).open() as stream:
        if kind == "puffin":
            vectors = deletion_vectors_from_puffin_file(PuffinFile(stream.read()))
            return {vector.referenced_data_file: vector.to_vector().to_numpy() for vector in vectors}
        rows = pq.read_table(stream, columns=["file_path", "pos"])
    by_path = rows.group_by("file_path").aggregate([("pos", "list")])
    paths, places = by_path.column("file_path").to_pylist(), by_path.column("pos_list")
    return {path: place.values.to_numpy() for path, place in zip(paths, places, strict=True)}


def kept_rows(rows: int, deleted: np.ndarray) -> Packed:
    """Returns the packed mask of the rows in a file that are not deleted."""
    mask = np.ones(rows, bool)
    mask[deleted[deleted < rows]] = False
    return pack(mask)
