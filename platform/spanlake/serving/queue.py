"""The texts of many callers that wait or are in work, and the choice of rows for the next forward pass.

Nothing here is locked: a queue belongs to one event loop, and nobody else changes it. The oldest row always goes with
the next pass, and younger ones of about its length fill it up: none waits for ever, and little is padded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError
from spanlake.inference.candidates import Candidates
from spanlake.inference.planning import Row
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText

_LABELS = 25  # of a row are free; with more of them, scoring its spans costs as much as reading its words
_LENGTHS_APART = 2.0  # rows of one pass differ in length at most by this factor from the oldest
_LOOK_AHEAD = 512  # rows that may be passed over to fill a pass
_RATE_WEIGHT = 0.1  # of the newest pass, where it is full, in the averages that sub-words per second come of


class OverloadedError(ShortfallError):
    """The queue is longer than its budget of time."""

    def __init__(self, wait: float, budget: float) -> None:
        super().__init__(f"The queue would take {wait:.1f} s and may take {budget:.1f} s; try again later.")
        self.retry_after = max(1.0, wait - budget / 2)  # seconds, until about half of the queue's budget is free


class DeadlineError(ShortfallError):
    """A text was not answered in time."""


class StoppedError(ShortfallError):
    """The model no longer takes or answers texts."""


@dataclass(eq=False)
class Text:
    """One text on its way. `cost` is in sub-words."""

    index: int
    text: str
    settings: Settings
    deadline: float  # time.monotonic()
    cost: int
    answer: asyncio.Future[list[Entity]]
    cut: CutText | None = None
    rows_left: int = 0
    found: list[Candidates] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Whether anybody still waits; one whose time is over is told so."""
        if time.monotonic() >= self.deadline:
            self.finish(DeadlineError("The text was not reached before its deadline; try again later."))
        return not self.answer.done()

    def finish(self, result: list[Entity] | Exception) -> None:
        """Answers, unless the text was cancelled or has failed before."""
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Rate:
    """Sub-words per second, averaged over the last passes."""

    def __init__(self, batch_tokens: int, known: float = 0.0) -> None:
        """`known`: the rate as far as it is known before the first pass."""
        self._batch_tokens = batch_tokens
        self._tokens = float(batch_tokens) if known else 0.0
        self._seconds = self._tokens / known if known else 0.0

    def account(self, tokens: int, seconds: float) -> None:
        """A pass that is hardly filled says little of what full ones do."""
        weight = _RATE_WEIGHT * min(1.0, tokens / self._batch_tokens) if self._tokens else 1.0
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (max(seconds, 1e-6) - self._seconds)

    def seconds(self, tokens: int) -> float:
        """That these sub-words take; 0 before anything is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class Queue:
    """Belongs to one event loop."""

    def __init__(self, batch_tokens: int, seconds: float, rate: Rate) -> None:
        """`seconds`: texts are refused while the queue would take longer."""
        self.rate = rate
        self.tokens = 0  # sub-words of all texts alive, estimated for those not yet cut
        self._batch_tokens = batch_tokens
        self._seconds = seconds
        self._alive: dict[int, Text] = {}
        self._next_index = 0
        self._uncut: deque[Text] = deque()
        self._rows: deque[Row] = deque()  # not yet in a pass, the oldest first
        self._row_tokens = 0

    @property
    def delay(self) -> float:
        """Seconds until all that is queued is answered, at the rate of the last passes."""
        return self.rate.seconds(self.tokens)

    @property
    def is_empty(self) -> bool:
        """Whether no text waits for a pass."""
        return not self._uncut and not self._rows

    def check_room(self) -> None:
        """Raises: OverloadedError where the queue would take too long."""
        if self.delay > self._seconds:
            raise OverloadedError(self.delay, self._seconds)

    def add(
        self, requests: Sequence[tuple[str, Settings]], costs: Sequence[int], deadline: float
    ) -> list[asyncio.Future[list[Entity]]]:
        """The answers to come. Cancel one to drop its text."""
        loop = asyncio.get_running_loop()
        answers = []
        for (words, settings), cost in zip(requests, costs, strict=True):
            text = Text(self._next_index, words, settings, deadline, cost, loop.create_future())
            text.answer.add_done_callback(partial(self._forget, text))
            self._alive[text.index] = text
            self._uncut.append(text)
            self._next_index += 1
            self.tokens += cost
            answers.append(text.answer)
        return answers

    def fail_all(self, error: Exception) -> None:
        for text in list(self._alive.values()):
            text.finish(error)

    def take_uncut(self, *, is_urgent: bool) -> list[Text]:
        """The oldest texts that no rows were made of: as many as give the next pass rows to choose from or, where it
        `is_urgent`, as fill it.
        """
        room = self._batch_tokens * (1 if is_urgent else 2) - self._row_tokens
        taken = []
        while self._uncut and room > 0:
            text = self._uncut.popleft()
            if text.is_wanted():
                taken.append(text)
                room -= text.cost
        return taken

    def add_rows(self, text: Text, cut: CutText, rows: Sequence[Row]) -> None:
        """The text's rows wait for passes; a text without rows has no entities."""
        if not rows:
            text.finish([])
            return
        text.cut, text.rows_left = cut, len(rows)
        cost = sum(row.tokens for row in rows)
        self._rows.extend(rows)
        self._row_tokens += cost
        if text.index in self._alive:
            self.tokens += cost - text.cost
            text.cost = cost

    def has_pass(self, *, is_urgent: bool) -> bool:
        """Whether rows fill a pass or, where it `is_urgent`, are there at all."""
        return bool(self._rows) and (is_urgent or self._row_tokens >= self._batch_tokens)

    def take_rows(self) -> list[Row]:
        """The oldest row whose text is still wanted, and those after it that fit beside it; none if none is wanted."""
        chosen: list[Row] = []
        passed_over: list[Row] = []
        longest = labels = 0
        while self._rows and len(passed_over) < _LOOK_AHEAD:
            row = self._rows.popleft()
            self._row_tokens -= row.tokens
            text = self._alive.get(row.text_index)
            if text is None or not text.is_wanted():
                continue
            longer, more = max(longest, row.tokens), max(labels, row.group.count)
            apart = chosen and not 1 / _LENGTHS_APART <= row.tokens / chosen[0].tokens <= _LENGTHS_APART
            cost = longer * (len(chosen) + 1) * max(1.0, more / _LABELS)
            if chosen and (apart or cost > self._batch_tokens):
                passed_over.append(row)
                continue
            chosen.append(row)
            longest, labels = longer, more
        self._rows.extendleft(reversed(passed_over))
        self._row_tokens += sum(row.tokens for row in passed_over)
        return chosen

    def fail(self, index: int, error: Exception) -> None:
        """The text fails; nobody else does."""
        if text := self._alive.get(index):
            text.finish(error)

    def add_found(self, rows: Sequence[Row], parts: dict[int, Candidates]) -> list[Text]:
        """Notes what a pass over these rows has found, by text; returns the texts that wait for no further pass."""
        counts = Counter(row.text_index for row in rows)
        ready = []
        for index, part in parts.items():
            if text := self._alive.get(index):
                text.found.append(part)
                text.rows_left -= counts[index]
                if not text.rows_left:
                    ready.append(text)
        return ready

    def _forget(self, text: Text, _: asyncio.Future[list[Entity]]) -> None:
        """Called once when a text is answered, has failed or was cancelled; its rows are left out of later passes."""
        del self._alive[text.index]
        self.tokens -= text.cost
