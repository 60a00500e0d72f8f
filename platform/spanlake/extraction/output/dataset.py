"""A directory of Parquet files as the target of an output, for tools that read no tables.

There are no transactions: the files of a unit have its name, so a run that was killed writes the same files again. The
mark is an empty file, written after all others.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.output.fit import check_partitions
from spanlake.extraction.output.target import TableOptions, UnitRows
from spanlake.extraction.source.widening import widened
from spanlake.storage import Place, locate

PREFIX = "parquet:"
_PARTITIONS = 10_000  # of one unit


class Apart(NamedTuple):
    """A directory of other files."""

    place: Place
    deep: bool  # whether files in all directories below it belong to it


class DatasetTarget:
    def __init__(self, uri: str, options: TableOptions, apart: Sequence[Apart] = ()) -> None:
        """`apart` are the directories of the source and the output, which the directory must not share.

        Raises UserError if it shares one, and if rows are to be merged.
        """
        self.options = options
        self._uri = uri
        self._place = locate(uri.removeprefix(PREFIX))
        if options.merge_on:
            raise _cannot_merge(uri)
        for other, deep in apart:
            one, two = f"{self._place.path.rstrip('/')}/", f"{other.path.rstrip('/')}/"
            shared = one == two or deep and (one.startswith(two) or two.startswith(one))
            if self._place.filesystem == other.filesystem and shared:
                raise UserError(f"--into {uri} shares files with {other.uri}: choose a directory outside it.")

    def __str__(self) -> str:
        return self._uri

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        """Returns the schema unchanged. Raises UserError if the files that are there have other columns or types."""
        schema = schema.remove_metadata()
        _check_free(self._uri, self._place)
        first = self._first_file()
        if first is None:
            return schema
        parts = _partitions(first)
        check_partitions(self._uri, parts, self.options.partition_by)
        if lacking := [part for part in parts if part not in schema.names]:
            raise UserError(
                f"{self._uri} is partitioned by {lacking[0]}, which is not a column of the output: choose another "
                "directory."
            )
        try:
            there = pq.read_schema(self._place.child(first), filesystem=self._place.filesystem)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._place.child(first)} cannot be read ({one_line(error)}).") from error
        _check_columns(self._uri, schema, there, parts, evolve=self.options.evolve)
        return schema

    def _first_file(self) -> str | None:
        start = len(self._place.path.rstrip("/")) + 1
        found = (info.path[start:] for info in self._place.list(recursive=True) if info.type == fs.FileType.File)
        return min((path for path in found if path.endswith(".parquet")), default=None)

    def holds(self, mark: str) -> bool:
        return self._place.kind(f"_{mark}") == fs.FileType.File

    def append(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        first = self._first_file()
        keys = self.options.partition_by if first is None else _partitions(first)
        partitioning = ds.partitioning(pa.schema([schema.field(key) for key in keys]), flavor="hive") if keys else None
        for unit in units:
            ds.write_dataset(
                unit.read(),
                self._place.path,
                schema=schema,
                filesystem=self._place.filesystem,
                format="parquet",
                partitioning=partitioning,
                basename_template=unit.name + ".{i}.parquet",
                file_options=ds.ParquetFileFormat().make_write_options(compression="zstd"),
                max_partitions=_PARTITIONS,
                existing_data_behavior="overwrite_or_ignore",
            )
        self._place.filesystem.create_dir(self._place.path, recursive=True)
        self._place.write(f"_{mark}", b"")

    def merge(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        raise _cannot_merge(self._uri)


def _partitions(path: str) -> list[str]:
    """Returns the columns that partition a directory, from the path of a file in it."""
    return [part.partition("=")[0] for part in PurePosixPath(path).parts[:-1]]


def _cannot_merge(uri: str) -> UserError:
    return UserError(
        f"--merge-on needs a table, and {uri} is a directory of files: "
        "use delta:PATH or iceberg:CATALOG.NAMESPACE.TABLE."
    )


def _check_free(uri: str, place: Place) -> None:
    """Raises UserError if the directory is a file, or belongs to a table."""
    if place.kind() == fs.FileType.File:
        raise UserError(f"--into {uri} is a file: choose a directory.")
    above = place.path.rstrip("/").rpartition("/")[0] or "/"
    for folder in (place, Place(place.uri, place.filesystem, above)):
        if name := _table_name(folder):
            raise UserError(
                f"--into {uri} is inside a table, which would not list the files: give {name}, or choose another "
                "directory."
            )


def _table_name(folder: Place) -> str | None:
    """Returns the form of the name of a table that has this folder; None for any other folder."""
    try:
        if folder.kind("_delta_log") == fs.FileType.Directory:
            return "delta:PATH"
        names = [info.base_name for info in folder.inside("metadata").list(recursive=False)]
    except OSError:  # a folder above may not be readable
        return None
    return "iceberg:CATALOG.NAMESPACE.TABLE" if any(name.endswith(".metadata.json") for name in names) else None


def _check_columns(uri: str, schema: pa.Schema, there: pa.Schema, parts: list[str], *, evolve: bool) -> None:
    wrong = [
        f"{column.name} is {there.field(column.name).type} in {uri} and {column.type} in the output"
        for column in schema
        if column.name in there.names and widened(there.field(column.name).type, column.type) is None
    ]
    if wrong:
        raise UserError(f"The column{'s' * (len(wrong) > 1)} {'; '.join(wrong)}: choose another directory.")
    new = [name for name in schema.names if name not in there.names and name not in parts]
    wider = [
        column.name for column in schema if column.name in there.names and there.field(column.name).type != column.type
    ]
    other = [*new, *wider]
    if other and not evolve:
        raise UserError(
            f"{uri} lacks the column{'s' * (len(other) > 1)} {', '.join(other)} in the output's types: "
            "give --evolve to write files with other columns, or choose another directory."
        )
