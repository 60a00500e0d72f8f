"""The audit log: the lines of the access log, in a file of its own."""

from __future__ import annotations

import os
import socket
from logging.handlers import WatchedFileHandler
from pathlib import Path

from spanlake.errors import UserError, one_line


def open_audit_log(directory: Path) -> WatchedFileHandler:
    """Returns a handler that appends to a file of this process in the directory, which is made if it is absent. A file
    that another program moves away is begun anew.

    Raises: UserError where the file cannot be written.
    """
    path = directory / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The audit log {path} cannot be written ({one_line(error)}); set audit_log to a directory that can."
        ) from error
    return handler
