"""Records when the forward passes of an Extractor begin and end."""

from __future__ import annotations

import time
from collections import deque


class Lanes:
    """The lanes of one Extractor. A pass that finds no free lane waits for one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._began: dict[int, float] = {}  # by pass, of the passes in a lane
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
        """The number of passes in a lane or waiting for one."""
        return len(self._began) + len(self._waiting)

    @property
    def idle_seconds(self) -> float:
        """The time since a pass last began or ended."""
        return time.monotonic() - max([self._last_end, *self._began.values()])

    @property
    def longest_seconds(self) -> float:
        """The time that the oldest pass has been in its lane."""
        return time.monotonic() - min(self._began.values(), default=time.monotonic())

    @property
    def busy_seconds(self) -> float:
        """The time that a lane has worked so far, on average over the lanes."""
        now = time.monotonic()
        return (self._busy_seconds + sum(now - began for began in self._began.values())) / self._count

    def begin(self) -> int:
        """Records a new pass, and returns its number."""
        self._passes += 1
        if self.has_free:
            self._began[self._passes] = time.monotonic()
        else:
            self._waiting.append(self._passes)
        return self._passes

    def end(self, number: int, *, has_failed: bool) -> tuple[float, float]:
        """Records the end of a pass. Returns its seconds, and the seconds since a pass in any lane ended before."""
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
        """Forgets a pass that waits for a lane."""
        if number in self._waiting:
            self._waiting.remove(number)
        else:  # a lane is free for it since then
            del self._began[number]
