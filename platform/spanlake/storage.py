"""Files and directories on a disk or in object storage, through pyarrow's interface."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from spanlake.errors import UserError, one_line


@dataclass(frozen=True)
class Place:
    """A path on a filesystem. It is cheap to pickle. Names are relative to the path, with / between their parts."""

    uri: str  # for messages: without credentials
    filesystem: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> str:
        """Returns the path, on this filesystem, of something inside this directory."""
        return f"{self.path.rstrip('/')}/{name}"

    def inside(self, name: str) -> Place:
        """Returns the place of something inside this directory."""
        return Place(child_uri(self.uri, name), self.filesystem, self.child(name))

    def kind(self, name: str = "") -> fs.FileType:
        """Returns the kind of this path, or of a name inside it: a file, a directory or nothing."""
        return self.filesystem.get_file_info(self.child(name) if name else self.path).type

    def list(self, *, recursive: bool) -> list[fs.FileInfo]:
        """Returns the contents of this directory from one listing. An absent directory has no contents."""
        return self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive, allow_not_found=True))

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None where it does not exist. Raises OSError where it cannot be read."""
        if self.kind(name) != fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(self.child(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes, draft: str | None = None) -> None:
        """Replaces a file as `replacing` does. The default name of the draft is NAME.new."""
        with self.replacing(name, draft or f"{name}.new") as path, self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        if self.kind(name) == fs.FileType.File:
            self.filesystem.delete_file(self.child(name))

    @contextmanager
    def replacing(self, name: str, draft: str) -> Iterator[str]:
        """Yields the path of a draft to write to. When the block ends without an error, the draft is moved to `name`.

        Readers see the old file or the whole new one. On object storage the server copies the draft.
        """
        path, final = self.child(draft), self.child(name)
        try:
            yield path
        except BaseException:
            with suppress(OSError):  # the error counts; a full disk needs the room of the draft
                self.filesystem.delete_file(path)
            raise
        try:
            if self.is_local:
                _flush_to_disk(path)  # else a power cut could keep the name and lose the content
            self.filesystem.move(path, final)
        except FileNotFoundError:  # another process has written the same file and removed the drafts
            if self.filesystem.get_file_info(final).type != fs.FileType.File:
                raise

    def publish(self, directory: Path, name: str) -> None:
        """Replaces the directory `name` by a copy of a local directory.

        On a disk, readers see the old directory or the whole new one. Object storage cannot move a directory, so there
        the old files are deleted before the new ones are written.
        """
        if not self.is_local:
            if self.kind(name) == fs.FileType.Directory:
                self.filesystem.delete_dir(self.child(name))
            self.upload(directory, name)
            return
        target, old, draft = (Path(self.child(name + suffix)) for suffix in ("", ".old", ".new"))
        for leftover in (old, draft):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(directory, draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def upload(self, directory: Path, name: str) -> None:
        """Copies the files of a local directory into the directory `name`."""
        fs.copy_files(
            str(directory),
            self.child(name),
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def download(self, name: str, directory: Path) -> None:
        """Copies the files of the directory `name` into a local directory."""
        fs.copy_files(
            self.child(name),
            str(directory),
            source_filesystem=self.filesystem,
            destination_filesystem=fs.LocalFileSystem(),
        )


def locate(uri: str) -> Place:
    """Returns the place of a local path or a URI (s3://, gs://, file://, any protocol of fsspec).

    The place need not exist yet. Raises UserError for a URI that is malformed, or whose service does not answer.
    """
    if "://" not in uri:
        path = os.path.abspath(os.path.expanduser(uri))
        return Place(path, fs.LocalFileSystem(), path)
    shown = shown_uri(uri)
    try:
        filesystem, path = _open(uri)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{shown} cannot be reached ({one_line(error)}).") from error
    return Place(shown, filesystem, path.rstrip("/"))


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a URI and the path on it.

    A key in object storage is read literally: a space, %, + or # in it is that character.
    Raises OSError, ValueError or ImportError for a URI that cannot be reached.
    """
    try:
        return fs.FileSystem.from_uri(uri if uri.startswith("file:") else _encoded(uri))
    except pa.ArrowInvalid:  # a protocol that pyarrow does not have itself
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _encoded(uri: str) -> str:
    """Returns the URI with its path percent-encoded, because pyarrow decodes it."""
    scheme, _, rest = uri.partition("://")
    options = re.search(r"\?(?=\w+=)", rest)
    path, tail = (rest[: options.start()], rest[options.start() :]) if options else (rest, "")
    host, slash, key = path.partition("/")
    return f"{scheme}://{host}{slash}{quote(key)}{tail}"


def child_uri(uri: str, name: str) -> str:
    """Returns the URI or path of something inside the directory at a URI or path."""
    place, separator, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{place.rstrip('/')}/{name}{separator}{options}"


def shown_uri(uri: str) -> str:
    """Returns the URI without credentials, for messages."""
    return re.sub(r"://[^/@]*@", "://", uri)


def _flush_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
