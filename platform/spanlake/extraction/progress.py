"""How far a run is, on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class RunProgress:
    """Rows done of a known total, and entities found. Rows that stood before count as done, but not as speed."""

    def __init__(self, total: int, standing: int) -> None:
        self._total = total
        self._standing = standing
        self._rows = 0
        self._said = -1  # rows, when a line was last printed
        self._entities = 0
        self._started = self._spoke = time.monotonic()
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task("rows", total=total, completed=standing, rate="") if self._bar else None

    def __enter__(self) -> "RunProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self._rows > self._said:
            self._say()

    def add(self, rows: int, entities: int) -> None:
        self._rows += rows
        self._entities += entities
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._standing + self._rows, rate=self._rate())
        elif time.monotonic() - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._say()

    def _rate(self) -> str:
        per_second = self._rows / max(1e-9, time.monotonic() - self._started)
        return f"{per_second:,.0f} rows/s, {self._entities:,} entities"

    def _say(self) -> None:
        self._spoke, self._said = time.monotonic(), self._rows
        print(f"{self._standing + self._rows:,} of {self._total:,} rows, {self._rate()}", file=sys.stderr, flush=True)


def _bar(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("rows, {task.fields[rate]}"), TimeRemainingColumn())
    return Progress(*columns, console=console)
