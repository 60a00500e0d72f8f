"""What the passes of an Extractor do: since when each runs, how much of the time, and whether they still end."""

from __future__ import annotations

import time
from collections import deque


class Lanes:
    """A pass that begins while all lanes are at work waits for the first that is free. Belongs to one event loop."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._began: dict[int, float] = {}  # by the number of the pass, of those that have a lane
        self._waiting: deque[int] = deque()
        self._passes = 0
        self._last_end = time.monotonic()
        self._busy_seconds = 0.0  # of all lanes
        self.is_failing = False  # whether no row of the last pass could be scored

    @property
    def has_free(self) -> bool:
        return len(self._began) < self._count

    @property
    def has_next(self) -> bool:
        """Whether a pass waits for a lane."""
        return bool(self._waiting)

    @property
    def running(self) -> int:
        """Passes that have not ended."""
        return len(self._began) + len(self._waiting)

    @property
    def idle_seconds(self) -> float:
        """Since a pass last ended, or began."""
        return time.monotonic() - max([self._last_end, *self._began.values()])

    @property
    def longest_seconds(self) -> float:
        """Since the oldest pass that runs has begun."""
        return time.monotonic() - min(self._began.values(), default=time.monotonic())

    @property
    def busy_seconds(self) -> float:
        """That passes have taken of each lane's time, those that run included."""
        now = time.monotonic()
        return (self._busy_seconds + sum(now - began for began in self._began.values())) / self._count

    def begin(self) -> int:
        """The number of a new pass."""
        self._passes += 1
        if self.has_free:
            self._began[self._passes] = time.monotonic()
        else:
            self._waiting.append(self._passes)
        return self._passes

    def end(self, number: int, *, has_failed: bool) -> tuple[float, float]:
        """Returns the seconds that the pass ran, and those since a pass ended before, in whatever lane."""
        now = time.monotonic()
        began = self._began.pop(number)
        since_last = now - self._last_end
        if self._waiting:
            self._began[self._waiting.popleft()] = now
        self._last_end = now
        self._busy_seconds += now - began
        self.is_failing = has_failed
        return now - began, since_last

    def drop(self, number: int) -> None:
        """The pass, which waited for a lane, does not run."""
        self._waiting.remove(number)
