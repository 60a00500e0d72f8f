"""The texts of many callers that wait or are in work, and the choice of rows for the next forward pass.

Nothing here is locked: a queue belongs to one event loop, and nobody else changes it.

Callers share the model evenly, however much each asks for: a clock runs with the work that each of them got, every row
has its turn on it, and the first in line always goes with the next pass, with others of about its length that fill it
up. None waits for ever, and little is padded. A turn lasts as long as a full pass; within one, who came first is first.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError
from spanlake.inference.candidates import Candidates
from spanlake.inference.planning import Row
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText
from spanlake.serving.config import Limits

_LABELS = 25  # of a row are free; with more of them, scoring its spans costs as much as reading its words
_LENGTHS_APART = 2.0  # rows of one pass differ in length at most by this factor from the first in line
_LOOK_AHEAD = 512  # rows that may be passed over to fill a pass
_RATE_WEIGHT = 0.1  # of the newest pass, where it is full, in the averages that sub-words per second come of
_HOPELESS = 2.0  # times what a request may take; an estimate below may be wrong
_CHARACTERS_PER_TOKEN = 4  # before a text is cut; the true number replaces the estimate afterwards


class OverloadedError(ShortfallError):
    """The queue is longer than its budget of time."""

    def __init__(self, wait: float, budget: float) -> None:
        super().__init__(f"The queue would take {wait:.1f} s and may take {budget:.1f} s; try again later.")
        self.retry_after = max(1.0, wait - budget / 2)  # seconds, until about half of the queue's budget is free


class TooMuchError(UserError):
    """A caller asks for more than any may have, however long the queue is."""


class DeadlineError(ShortfallError):
    """A text was not answered in time."""


class StoppedError(ShortfallError):
    """The model no longer takes or answers texts."""


@dataclass(frozen=True)
class Search:
    """What to look for, and what the model reads of it beside each window of a text."""

    settings: Settings
    prompts: int  # beside each of which every window is read
    prompt_tokens: int  # of all prompts together
    window_tokens: int  # that the model reads at once

    def cost(self, text: str) -> int:
        """The sub-words that a text costs, as far as can be told before it is cut."""
        own = len(text) // _CHARACTERS_PER_TOKEN + 1
        windows = 1 + own // self.window_tokens
        read = self.prompts * own + windows * self.prompt_tokens
        return round(read * _weight(len(self.settings.names) / self.prompts))


@dataclass(eq=False)
class Caller:
    """Whose texts have their turns one after another: a request, or one text of a stream."""

    turn: float = 0.0  # of its next text, on the queue's clock
    texts: set[Text] = field(default_factory=set)  # that are not answered
    cost: int = 0  # of these, in sub-words
    spans: int = 0  # that were found in its texts


@dataclass(eq=False)
class Text:
    """One text on its way. `cost` is in sub-words."""

    index: int
    text: str
    settings: Settings
    caller: Caller
    turn: float  # of its first row
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
    """Belongs to one event loop. Costs are in sub-words; a row with many labels counts for more than it has."""

    def __init__(self, batch_tokens: int, limits: Limits, rate: Rate) -> None:
        self.rate = rate
        self.cost = 0  # of all texts alive, estimated for those not yet cut
        self.changed = asyncio.Event()  # set when texts have come or gone
        self._batch_tokens = batch_tokens
        self._limits = limits
        self._callers: set[Caller] = set()  # whose texts are alive
        self._alive: dict[int, Text] = {}
        self._next_index = 0
        self._clock = 0.0  # sub-words that each caller got who had always something to do
        self._uncut: list[tuple[int, int, Text]] = []  # a heap, by turn and index
        self._rows: list[tuple[int, int, int, Row]] = []  # a heap of those not yet in a pass; the number is the row's
        self._row_cost = 0

    @property
    def delay(self) -> float:
        """Seconds until all that is queued is answered, at the rate of the last passes."""
        return self.rate.seconds(self.cost)

    @property
    def is_empty(self) -> bool:
        """Whether no text waits for a pass."""
        return not self._uncut and not self._rows

    def check_cost(self, cost: int) -> None:
        """Raises: TooMuchError where texts of this cost would not be answered in time even if they were alone."""
        own, most = self.rate.seconds(cost), self._limits.request_seconds
        if own > _HOPELESS * most:
            raise TooMuchError(
                f"The texts and labels would take this server about {own:.0f} s, and a request may take {most:g} s; "
                "send fewer or shorter texts, or fewer labels."
            )

    def check_room(self, cost: int) -> None:
        """Raises: TooMuchError as `check_cost` does, OverloadedError where texts of this cost would wait too long. They
        would not wait for what others have more than they.
        """
        self.check_cost(cost)
        wait = self.rate.seconds(sum(min(caller.cost, cost) for caller in self._callers))
        if wait > self._limits.queue_seconds:
            raise OverloadedError(wait, self._limits.queue_seconds)

    def add(
        self, caller: Caller, texts: Sequence[str], search: Search, deadline: float
    ) -> list[asyncio.Future[list[Entity]]]:
        """The answers to come. Cancel one to drop its text."""
        loop = asyncio.get_running_loop()
        caller.turn = max(caller.turn, self._clock)
        answers = []
        for words in texts:
            cost = search.cost(words)
            answer = loop.create_future()
            text = Text(self._next_index, words, search.settings, caller, caller.turn, deadline, cost, answer)
            answer.add_done_callback(partial(self._forget, text))
            heappush(self._uncut, (self._turn(text.turn), text.index, text))
            self._alive[text.index] = text
            self._next_index += 1
            self._charge(text, cost)
            caller.texts.add(text)
            caller.turn += cost
            answers.append(answer)
        if caller.texts:
            self._callers.add(caller)
        self.changed.set()
        return answers

    def fail_all(self, error: Exception) -> None:
        for text in list(self._alive.values()):
            text.finish(error)

    def take_uncut(self, *, is_urgent: bool) -> list[Text]:
        """The first texts in line that no rows were made of: all whose turn is before that of the first row, and as
        many as give the next pass rows to choose from or, where it `is_urgent`, as fill it.
        """
        room = self._batch_tokens * (1 if is_urgent else 2) - self._row_cost
        taken: list[Text] = []
        cost = 0
        while self._uncut and cost < 2 * self._batch_tokens:
            is_first = bool(self._rows) and self._uncut[0][:2] < self._rows[0][:2]
            if cost >= room and not is_first:
                break
            text = heappop(self._uncut)[-1]
            if text.is_wanted():
                taken.append(text)
                cost += text.cost
        return taken

    def add_rows(self, text: Text, cut: CutText, rows: Sequence[Row]) -> None:
        """The text's rows wait for passes; a text without rows has no entities."""
        if not rows:
            text.finish([])
            return
        text.cut, text.rows_left = cut, len(rows)
        cost = 0
        for number, row in enumerate(rows):
            heappush(self._rows, (self._turn(text.turn + cost), text.index, number, row))
            cost += row_cost(row)
        self._row_cost += cost
        if text.index in self._alive:
            self._charge(text, cost - text.cost)
            text.cost = cost

    def has_pass(self, *, is_urgent: bool) -> bool:
        """Whether rows fill a pass or, where it `is_urgent`, are there at all."""
        return bool(self._rows) and (is_urgent or self._row_cost >= self._batch_tokens)

    def take_rows(self) -> list[Row]:
        """The first row in line whose text is still wanted, and those after it that fit beside it; none if none is
        wanted.
        """
        chosen: list[Row] = []
        passed_over: list[tuple[int, int, int, Row]] = []
        longest = labels = got = 0
        while self._rows and len(passed_over) < _LOOK_AHEAD:
            place = heappop(self._rows)
            row = place[-1]
            self._row_cost -= row_cost(row)
            text = self._alive.get(row.text_index)
            if text is None or not text.is_wanted():
                continue
            longer, more = max(longest, row.tokens), max(labels, row.group.count)
            apart = chosen and not 1 / _LENGTHS_APART <= row.tokens / chosen[0].tokens <= _LENGTHS_APART
            if chosen and (apart or longer * (len(chosen) + 1) * _weight(more) > self._batch_tokens):
                passed_over.append(place)
                continue
            chosen.append(row)
            longest, labels = longer, more
            got += row_cost(row)
        for place in passed_over:
            heappush(self._rows, place)
            self._row_cost += row_cost(place[-1])
        self._clock += got / max(1, len(self._callers))
        return chosen

    def wants(self, rows: Sequence[Row]) -> bool:
        """Whether anybody waits for one of these rows."""
        return any(row.text_index in self._alive for row in rows)

    def fail(self, index: int, error: Exception) -> None:
        """The text fails; nobody else does."""
        if text := self._alive.get(index):
            text.finish(error)

    def add_found(self, rows: Sequence[Row], parts: dict[int, Candidates]) -> list[Text]:
        """Notes what a pass over these rows has found, by text; returns the texts that wait for no further pass."""
        counts = Counter(row.text_index for row in rows)
        ready = []
        for index, part in parts.items():
            text = self._alive.get(index)
            if text is None or text.answer.done():
                continue
            text.caller.spans += len(part.score)
            if text.caller.spans > self._limits.spans:
                self._refuse(text.caller)
                continue
            text.found.append(part)
            text.rows_left -= counts[index]
            if not text.rows_left:
                ready.append(text)
        return ready

    def _refuse(self, caller: Caller) -> None:
        error = TooMuchError(
            f"More than {self._limits.spans} spans of the request's texts score above the threshold, each label "
            "counted, and that is the most allowed; raise the threshold, or send fewer texts or labels."
        )
        for text in list(caller.texts):
            text.finish(error)

    def _turn(self, clock: float) -> int:
        return int(clock // self._batch_tokens)

    def _charge(self, text: Text, cost: int) -> None:
        text.caller.cost += cost
        self.cost += cost

    def _forget(self, text: Text, _: asyncio.Future[list[Entity]]) -> None:
        """Called once when a text is answered, has failed or was cancelled; its rows are left out of later passes."""
        del self._alive[text.index]
        self._charge(text, -text.cost)
        text.caller.texts.remove(text)
        if not text.caller.texts:
            self._callers.discard(text.caller)
        self.changed.set()


def _weight(labels: float) -> float:
    return max(1.0, labels / _LABELS)


def row_cost(row: Row) -> int:
    """Its sub-words, or more where it has many labels."""
    return round(row.tokens * _weight(row.group.count))
