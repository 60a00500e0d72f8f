"""Shows the progress of a run on stderr: as a bar on a terminal, as lines in a log."""

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spanlake.extraction.run.board import STAGES, State
from spanlake.extraction.run.unit import UnitCounts

_SECONDS_BETWEEN_LINES = 10.0


class RunProgress:
    """Rows done of a known total, entities found, and units in work.

    Speeds count only the rows of this run, not those that were committed before.
    """

    def __init__(self, units: int, total: int, standing: int) -> None:
        """`units` are pending; `total` counts the rows of the source, and `standing` those committed before."""
        self._units = units
        self._total = total
        self._standing = standing
        self._rows = self._tokens = self._entities = self._failed_rows = 0
        self._state = State(0)
        self._said = -1  # rows at the last printed line
        self._started = self._spoke = time.monotonic()
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._task = (
            self._bar.add_task("rows", total=total, completed=standing, found="", work="") if self._bar else None
        )

    def __enter__(self) -> "RunProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self._rows > self._said:
            self._say()

    def add(self, unit: UnitCounts, state: State) -> None:
        self._units -= 1
        self._rows += unit.rows
        self._tokens += unit.tokens
        self._entities += unit.entities
        self._failed_rows += unit.failed_rows
        self._state = state
        if self._bar and self._task is not None:
            done = self._standing + self._rows
            self._bar.update(self._task, completed=done, found=self._found(), work=self._work())
        elif time.monotonic() - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._say()

    def _per_second(self, count: int) -> float:
        return count / max(1e-9, time.monotonic() - self._started)

    def _found(self) -> str:
        return (
            f"{self._per_second(self._rows):,.0f} rows/s, {self._per_second(self._tokens):,.0f} tokens/s, "
            f"{self._entities:,} entities, {self._failed_rows:,} errors"
        )

    def _work(self) -> str:
        """Returns the number of waiting units, of units at each stage, and of workers."""
        stages = self._state.stages
        waiting = max(0, self._units - sum(stages.values()))
        counts = [f"{waiting:,} waiting", *(f"{stages.get(stage, 0)} {stage}" for stage in STAGES)]
        return f"units: {', '.join(counts)}; workers: {self._state.workers}"

    def _say(self) -> None:
        self._spoke, self._said = time.monotonic(), self._rows
        done = self._standing + self._rows
        left = timedelta(seconds=round((self._total - done) / max(1e-9, self._per_second(self._rows))))
        line = f"{done:,} of {self._total:,} rows, {self._found()}, {left} left; {self._work()}"
        print(line, file=sys.stderr, flush=True)


def _bar(console: Console) -> Progress:
    fields = TextColumn("rows, {task.fields[found]}")
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        fields,
        TimeRemainingColumn(),
        TextColumn("{task.fields[work]}"),
        console=console,
    )
