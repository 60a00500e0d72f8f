"""What is in work: at which attempt, by which worker, at what stage, and over which rows workers have died."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

STAGES = ("reading", "scoring", "writing")


class Turn(NamedTuple):
    """A worker's attempt at a unit."""

    attempt: int  # from 1
    deadly: set[int]  # rows of the unit that killed their workers


@dataclass
class State:
    """How many workers there are, and how many units are at each stage."""

    workers: int
    stages: dict[str, int] = field(default_factory=dict)


class Board:
    """One for all workers of a run. Ray retries a unit without end if its worker dies each time, and tells nobody."""

    def __init__(self, limit: int) -> None:
        """`limit`: attempts at a unit."""
        self._limit = limit
        self._workers: set[str] = set()
        self._begun: Counter[str] = Counter()
        self._worker_of: dict[str, str] = {}
        self._stage_of: dict[str, str] = {}
        self._at: dict[str, int] = {}
        self._deaths: dict[str, Counter[int]] = {}

    def join(self, worker: str) -> None:
        """A worker is ready."""
        self._workers.add(worker)

    def tried(self, unit: str) -> bool:
        """Whether a worker has begun the unit, and did not end it."""
        return self._begun[unit] > 0

    def begin(self, unit: str, worker: str) -> Turn | None:
        """A worker begins a unit; None where it would be one attempt too many."""
        self._workers.discard(self._worker_of.get(unit, ""))  # which would have ended it, were it alive
        self._worker_of[unit] = worker
        self._stage_of.pop(unit, None)
        self._begun[unit] += 1
        deaths = self._deaths.setdefault(unit, Counter())
        if unit in self._at:
            deaths[self._at.pop(unit)] += 1
        if self._begun[unit] > self._limit:
            return None
        # A worker may die of something else. That it does so twice over the same row is no chance.
        return Turn(self._begun[unit], {row for row, count in deaths.items() if count > 1})

    def at_stage(self, unit: str, stage: str) -> None:
        self._stage_of[unit] = stage

    def at_row(self, unit: str, row: int) -> None:
        """The row is about to be read, and no other of any unit by the same worker."""
        self._at[unit] = row

    def end(self, unit: str) -> None:
        for known in (self._begun, self._worker_of, self._stage_of, self._at, self._deaths):
            known.pop(unit, None)

    def state(self) -> State:
        stages = Counter(self._stage_of.values())
        return State(len(self._workers), {stage: stages[stage] for stage in STAGES})
