"""Files named by URI."""

from __future__ import annotations

import re

import pyarrow as pa
from pyarrow import fs


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path on it that a URI names: s3://, gs://, file://, or any protocol of fsspec.

    Raises OSError, ValueError or ImportError for one that cannot be reached.
    """
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:  # a protocol that pyarrow does not have itself
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def child_uri(uri: str, name: str) -> str:
    """The URI, or path, of something inside the directory that a URI, or path, names."""
    place, separator, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{place.rstrip('/')}/{name}{separator}{options}"


def shown_uri(uri: str) -> str:
    """The URI without credentials, for messages."""
    return re.sub(r"://[^/@]*@", "://", uri)
