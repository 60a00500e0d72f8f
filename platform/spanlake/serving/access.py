"""The access log: one line of JSON for each request, which never holds a text, a label or a key."""

from __future__ import annotations

import asyncio
import logging


class TurnHandler(logging.Handler):
    """Writes the lines of one turn of the event loop together. Without a running loop, it writes each line at once."""

    def __init__(self, target: logging.StreamHandler) -> None:
        """`target` writes what it gets and flushes."""
        super().__init__()
        self._target = target
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        with self.lock:  # type: ignore[union-attr]
            lines, self._lines = self._lines, []
            if lines:
                self._target.emit(logging.makeLogRecord({"msg": self._target.terminator.join(lines)}))

    def close(self) -> None:
        self.flush()
        self._target.close()
        super().close()
