"""Files named by URI."""

from __future__ import annotations

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
