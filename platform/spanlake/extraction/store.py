"""Files and directories on any filesystem, by one interface: pyarrow's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.errors import SpanlakeError, UserError, one_line
from spanlake.storage import open_uri, shown_uri

_TAIL_BYTES = 1 << 16  # one read of this size holds most footers


@dataclass(frozen=True)
class Place:
    """A path on a filesystem; `uri` names it to people, without credentials. Cheap to send to another process."""

    uri: str
    filesystem: fs.FileSystem
    path: str

    def child(self, name: str) -> str:
        """The path, on this place's filesystem, of something inside this directory."""
        return f"{self.path.rstrip('/')}/{name}"

    def kind(self) -> fs.FileType:
        return self.filesystem.get_file_info(self.path).type


def locate(uri: str) -> Place:
    """The place that a local path or a URI (s3://, gs://, file://, any protocol of fsspec) names; it need not exist.

    Raises: UserError for a URI that cannot be understood, or whose service does not answer.
    """
    if "://" not in uri:
        path = os.path.abspath(os.path.expanduser(uri))
        return Place(path, fs.LocalFileSystem(), path)
    shown = shown_uri(uri)
    try:
        filesystem, path = open_uri(uri)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{shown} cannot be reached ({one_line(error)}).") from error
    return Place(shown, filesystem, path)


def list_files(place: Place, *, recursive: bool) -> list[fs.FileInfo]:
    """What stands in a directory, from one listing; empty where the directory does not exist."""
    selector = fs.FileSelector(place.path, recursive=recursive, allow_not_found=True)
    return place.filesystem.get_file_info(selector)


@contextmanager
def replacing(place: Place, temporary: str, final: str) -> Iterator[str]:
    """A temporary path to write to; it takes the final name when the block ends, and never if the block raises.

    Readers see the old file or the whole new one. On object storage the move is a server-side copy.
    """
    yield temporary
    try:
        if isinstance(place.filesystem, fs.LocalFileSystem):
            _flush_to_disk(temporary)  # or a power cut could keep the name and lose the content
        place.filesystem.move(temporary, final)
    except FileNotFoundError:  # another run of the same command has finished, and cleaned up
        if place.filesystem.get_file_info(final).type != fs.FileType.File:
            raise


def _flush_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Footer:
    """A Parquet file's own account of itself, a digest of that account (hex SHA-256), and the file's size in bytes."""

    metadata: pq.FileMetaData
    schema: pa.Schema
    digest: str
    file_size: int


def read_footer(filesystem: fs.FileSystem, path: str) -> Footer:
    """The footer of a Parquet file, by one small read.

    Raises: UserError for a file that is not Parquet, is cut short, or is encrypted; OSError where it cannot be read.
    """
    with filesystem.open_input_file(path) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if tail[-4:] == b"PARE":
            raise UserError(f"{path} is an encrypted Parquet file, which cannot be read: decrypt it first.")
        length = int.from_bytes(tail[-8:-4], "little")
        if size < 12 or tail[-4:] != b"PAR1" or length + 12 > size:
            raise UserError(f"{path} is not a whole Parquet file (its footer is missing): replace it or move it away.")
        content = tail[-8 - length : -8] if length + 8 <= len(tail) else file.read_at(length, size - 8 - length)
    try:
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + content + tail[-8:]))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} has a footer that cannot be read ({one_line(error)}).") from error
    return Footer(metadata, schema, sha256(content).hexdigest(), size)


def describe(error: BaseException) -> str:
    """An exception in part of a sentence; its type too, unless it is one of ours, which say all that is to be said."""
    return one_line(error) if isinstance(error, SpanlakeError) else f"{type(error).__name__}: {one_line(error)}"
