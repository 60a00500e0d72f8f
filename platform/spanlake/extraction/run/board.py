"""Keeps track of units in work: their attempt, worker and stage, and the rows over which workers have died."""

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
    """The number of workers, and the number of units at each stage."""

    workers: int
    stages: dict[str, int] = field(default_factory=dict)


class Board:
    """The shared record of all workers in a run.

    It is needed because Ray retries a unit without end, and without notice, if its worker dies each time.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the number of attempts at a unit."""
        self._limit = limit
        self._workers: set[str] = set()
        self._begun: Counter[str] = Counter()
        self._worker_of: dict[str, str] = {}
        self._stage_of: dict[str, str] = {}
        self._at: dict[str, int] = {}
        self._deaths: dict[str, Counter[int]] = {}

    def join(self, worker: str) -> None:
        """Records that a worker is ready."""
        self._workers.add(worker)

    def tried(self, unit: str) -> bool:
        """Returns whether a worker has begun the unit and has not ended it."""
        return self._begun[unit] > 0

    def begin(self, unit: str, worker: str) -> Turn | None:
        """Records that a worker begins a unit, and returns its turn; None if there were too many attempts."""
        self._workers.discard(self._worker_of.get(unit, ""))  # the earlier worker died, because it did not end the unit
        self._worker_of[unit] = worker
        self._stage_of.pop(unit, None)
        self._begun[unit] += 1
        deaths = self._deaths.setdefault(unit, Counter())
        if unit in self._at:
            deaths[self._at.pop(unit)] += 1
        if self._begun[unit] > self._limit:
            return None
        # A worker may die for another reason. Two deaths over the same row are not a coincidence.
        return Turn(self._begun[unit], {row for row, count in deaths.items() if count > 1})

    def at_stage(self, unit: str, stage: str) -> None:
        self._stage_of[unit] = stage

    def at_row(self, unit: str, row: int) -> None:
        """Records that the worker of a unit is about to process this row, and only this row."""
        self._at[unit] = row

    def end(self, unit: str) -> None:
        for known in (self._begun, self._worker_of, self._stage_of, self._at, self._deaths):
            known.pop(unit, None)

    def state(self) -> State:
        stages = Counter(self._stage_of.values())
        return State(len(self._workers), {stage: stages[stage] for stage in STAGES})
