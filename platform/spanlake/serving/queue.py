"""Holds the texts that wait or are in work, and chooses the rows of the next forward pass.

A queue needs no lock, because it belongs to one event loop.

Callers share the model evenly, however much each asks for. A clock counts the work that each caller got, and each row
has a turn on this clock. A turn is as long as a full pass; within a turn, the oldest row is first. A pass takes the
first row in line, and then other rows of about its length. So no row waits for ever, and there is little padding.
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
    """Texts would wait longer than the queue's budget allows."""

    def __init__(self, wait: float, budget: float) -> None:
        super().__init__(f"The queue would take {wait:.1f} s and may take {budget:.1f} s; try again later.")
        self.retry_after = max(1.0, wait - budget / 2)  # seconds, until about half of the queue's budget is free


class TooMuchError(UserError):
    """A caller asks for more than any caller may, however short the queue is."""


class DeadlineError(ShortfallError):
    """A text was not answered in time."""


class StoppedError(ShortfallError):
    """The model no longer takes or answers texts."""


@dataclass(frozen=True)
class Search:
    """What to look for, and what this adds to the work on a text."""

    settings: Settings
    prompts: int  # the model reads each window of a text once for each prompt
    prompt_tokens: int  # sub-words of all prompts together
    window_tokens: int  # sub-words that the model reads at once

    def cost(self, text: str) -> int:
        """Returns an estimate of the sub-words that the model reads for a text."""
        own = len(text) // _CHARACTERS_PER_TOKEN + 1
        windows = 1 + own // self.window_tokens
        read = self.prompts * own + windows * self.prompt_tokens
        return round(read * _weight(len(self.settings.names) / self.prompts))


@dataclass(eq=False)
class Caller:
    """A request or a stream."""

    is_stream: bool = False  # its texts are answered one by one, and each may have as many spans as a request
    turn: float = 0.0  # of its next text, on the queue's clock
    texts: set[Text] = field(default_factory=set)  # without an answer so far
    cost: int = 0  # of these texts, in sub-words
    spans: int = 0  # found in all its texts so far


@dataclass(eq=False)
class Text:
    """One text in the queue. `cost` is in sub-words."""

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
    spans: int = 0
    found: list[Candidates] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Returns whether a caller still waits for this text. Fails a text whose deadline has passed."""
        if time.monotonic() >= self.deadline:
            self.finish(DeadlineError("The text was not reached before its deadline; try again later."))
        return not self.answer.done()

    def finish(self, result: list[Entity] | Exception) -> None:
        """Sets the answer, unless the text has one or was cancelled."""
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Rate:
    """The sub-words per second of the last passes, averaged."""

    def __init__(self, batch_tokens: int, known: float = 0.0) -> None:
        """`known` is the rate before the first pass, or 0 where it is unknown."""
        self._batch_tokens = batch_tokens
        self._tokens = float(batch_tokens) if known else 0.0
        self._seconds = self._tokens / known if known else 0.0

    def account(self, tokens: int, seconds: float) -> None:
        """Adds a pass. It counts less if it is not full, because it says little about full passes."""
        weight = _RATE_WEIGHT * min(1.0, tokens / self._batch_tokens) if self._tokens else 1.0
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (max(seconds, 1e-6) - self._seconds)

    def seconds(self, tokens: int) -> float:
        """Returns the time for these sub-words; 0 while the rate is unknown."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class Queue:
    """Costs are in sub-words. A row with many labels costs more than the sub-words that it has."""

    def __init__(self, batch_tokens: int, limits: Limits, rate: Rate) -> None:
        self.rate = rate
        self.cost = 0  # of all texts alive, estimated for texts not yet cut
        self.changed = asyncio.Event()  # set when texts come or go
        self._batch_tokens = batch_tokens
        self._limits = limits
        self._callers: set[Caller] = set()  # whose texts are alive
        self._alive: dict[int, Text] = {}
        self._next_index = 0
        self._clock = 0.0  # sub-words that each waiting caller got
        self._uncut: list[tuple[int, int, Text]] = []  # a heap, by turn and index
        self._rows: list[tuple[int, int, int, Row]] = []  # a heap, by turn, text and number
        self._row_cost = 0

    @property
    def delay(self) -> float:
        """The seconds until the whole queue is answered, at the rate of the last passes."""
        return self.rate.seconds(self.cost)

    @property
    def is_empty(self) -> bool:
        """Whether no text waits for a pass."""
        return not self._uncut and not self._rows

    def check_cost(self, cost: int) -> None:
        """Raises: TooMuchError where texts of this cost could not be answered in time even if they were alone."""
        own, most = self.rate.seconds(cost), self._limits.request_seconds
        if own > _HOPELESS * most:
            raise TooMuchError(
                f"The texts and labels would take this server about {own:.0f} s, and a request may take {most:g} s; "
                "send fewer or shorter texts, or fewer labels."
            )

    def check_room(self, cost: int) -> None:
        """Judges whether texts of this cost can be added. They wait for each other caller at most as long as they take
        themselves.

        Raises: TooMuchError as `check_cost` does, OverloadedError where they would wait too long.
        """
        self.check_cost(cost)
        wait = self.rate.seconds(sum(min(caller.cost, cost) for caller in self._callers))
        if wait > self._limits.queue_seconds:
            raise OverloadedError(wait, self._limits.queue_seconds)

    def add(
        self, caller: Caller, texts: Sequence[str], searches: Sequence[Search], deadline: float
    ) -> list[asyncio.Future[list[Entity]]]:
        """Takes one search per text. Returns the future answers, one per text. Cancel an answer to drop its text."""
        loop = asyncio.get_running_loop()
        caller.turn = max(caller.turn, self._clock)
        answers = []
        for words, search in zip(texts, searches, strict=True):
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
        """Removes and returns texts to cut, the first in line first.

        Takes each text that comes before the first row. Beyond these, takes enough for the next pass where it
        `is_urgent`, or else enough that the next pass can choose among rows.
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
        """Adds the rows of a text. A text without rows has no entities, so this answers it."""
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
        """Returns whether there are enough rows for a full pass or, where it `is_urgent`, any rows."""
        return bool(self._rows) and (is_urgent or self._row_cost >= self._batch_tokens)

    def take_rows(self) -> list[Row]:
        """Removes and returns the first row in line, and later rows that fit into the same pass. Drops rows that no
        caller waits for, so the result may be empty.
        """
        chosen: list[Row] = []
        passed_over: list[tuple[int, int, int, Row]] = []
        longest = labels = got = 0
        while self._rows and len(passed_over) < _LOOK_AHEAD:
            place = heappop(self._rows)
            turn, row = place[0], place[-1]
            self._row_cost -= row_cost(row)
            text = self._alive.get(row.text_index)
            if text is None or not text.is_wanted():
                continue
            longer, more = max(longest, row.tokens), max(labels, row.group.count)
            apart = chosen and not 1 / _LENGTHS_APART <= row.tokens / chosen[0].tokens <= _LENGTHS_APART
            if chosen and (apart or longer * (len(chosen) + 1) * _weight(more) > self._batch_tokens):
                passed_over.append(place)
                continue
            if not chosen:
                self._clock = max(self._clock, float(turn * self._batch_tokens))
            chosen.append(row)
            longest, labels = longer, more
            got += row_cost(row)
        for place in passed_over:
            heappush(self._rows, place)
            self._row_cost += row_cost(place[-1])
        self._clock += got / max(1, len(self._callers))
        return chosen

    def wants(self, rows: Sequence[Row]) -> bool:
        """Returns whether a caller waits for one of these rows."""
        return any(row.text_index in self._alive for row in rows)

    def fail(self, index: int, error: Exception) -> None:
        """Fails one text."""
        if text := self._alive.get(index):
            text.finish(error)

    def add_found(self, rows: Sequence[Row], parts: dict[int, Candidates]) -> list[Text]:
        """Adds what a pass over these rows has found, by text. Returns the texts that need no further pass."""
        counts = Counter(row.text_index for row in rows)
        ready = []
        for index, part in parts.items():
            text = self._alive.get(index)
            if text is None or text.answer.done():
                continue
            caller = text.caller
            text.spans += len(part.score)
            caller.spans += len(part.score)
            if (text.spans if caller.is_stream else caller.spans) > self._limits.spans:
                self._refuse([text] if caller.is_stream else list(caller.texts))
                continue
            text.found.append(part)
            text.rows_left -= counts[index]
            if not text.rows_left:
                ready.append(text)
        return ready

    def _refuse(self, texts: Sequence[Text]) -> None:
        error = TooMuchError(
            f"More than {self._limits.spans} spans of the request's texts score above the threshold, each label "
            "counted, which is the most allowed; raise the threshold, or send fewer texts or labels."
        )
        for text in texts:
            text.finish(error)

    def _turn(self, clock: float) -> int:
        return int(clock // self._batch_tokens)

    def _charge(self, text: Text, cost: int) -> None:
        text.caller.cost += cost
        self.cost += cost

    def _forget(self, text: Text, _: asyncio.Future[list[Entity]]) -> None:
        """Runs once per text, when it has an answer or was cancelled. Later passes leave out its rows."""
        del self._alive[text.index]
        self._charge(text, -text.cost)
        text.caller.texts.remove(text)
        if not text.caller.texts:
            self._callers.discard(text.caller)
        self.changed.set()


def _weight(labels: float) -> float:
    return max(1.0, labels / _LABELS)


def row_cost(row: Row) -> int:
    """Returns the row's sub-words, or more where it has many labels."""
    return round(row.tokens * _weight(row.group.count))
