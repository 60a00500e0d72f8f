"""Texts of many callers -> forward passes of bounded cost.

One thread cuts texts into sub-words and prepares passes, one for each lane of the Extractor scores them, and one
chooses the entities. Exactly one pass is prepared ahead, as soon as it is full; one that is not full stays open for
what arrives, until a lane has nothing to do. The oldest row always goes with the next pass, and younger ones of about
its length fill it up: none waits for ever, and little is padded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError
from spanlake.inference.candidates import Candidates, choose, join
from spanlake.inference.extractor import Extractor
from spanlake.inference.planning import PlannedText, Row
from spanlake.inference.scoring import Pass
from spanlake.inference.settings import Settings

_LABELS = 25  # of a row are free; with more of them, scoring its spans costs as much as reading its words
_LENGTHS_APART = 2.0  # rows of one pass differ in length at most by this factor from the oldest
_LOOK_AHEAD = 512  # rows that may be passed over to fill a pass
_RATE_WEIGHT = 0.1  # of the newest pass, where it is full, in the averages that sub-words per second come of
_CHARACTERS_PER_TOKEN = 4  # before a text is cut; the true number replaces the estimate afterwards

_log = logging.getLogger(__name__)


class OverloadedError(ShortfallError):
    """The queue is longer than its budget of time."""

    def __init__(self, wait: float, budget: float) -> None:
        super().__init__(f"The queue would take {wait:.1f} s and may take {budget:.1f} s; try again later.")
        self.retry_after = max(1.0, wait - budget / 2)  # seconds, until about half of the queue's budget is free


class DeadlineError(ShortfallError):
    """A text was not answered in time."""


class StoppedError(ShortfallError):
    """The batcher no longer takes or answers texts."""


@dataclass(frozen=True)
class PassReport:
    """What one forward pass did."""

    rows: int
    tokens: int  # sub-words of the rows
    padded_tokens: int  # that were computed
    seconds: float


class Observer(Protocol):
    def __call__(self, report: PassReport) -> None: ...


@dataclass(eq=False)
class _Text:
    """One text on its way. `cost` is in sub-words."""

    index: int
    text: str
    settings: Settings
    deadline: float  # time.monotonic()
    cost: int
    answer: Future[list[Entity]] = field(default_factory=Future)
    planned: PlannedText | None = None
    rows_left: int = 0
    found: list[Candidates] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Whether anybody still waits; one whose time is over is told so."""
        if self.answer.done():
            return False
        if time.monotonic() < self.deadline:
            return True
        _fail(self.answer, DeadlineError("The text was not reached before its deadline; try again later."))
        return False


class Batcher:
    """Answers texts with one Extractor. All methods may be called from any thread, and none of them waits for it."""

    def __init__(
        self,
        extractor: Extractor,
        *,
        queue_seconds: float,
        stuck_seconds: float,
        rate: float = 0.0,
        observe: Observer = lambda report: None,
    ) -> None:
        """`queue_seconds`: texts are refused while the queue would take longer. `stuck_seconds`: a pass that takes
        longer is taken for dead. `rate`: sub-words per second, as far as it is known before the first pass.
        """
        self._extractor = extractor
        self._queue_seconds = queue_seconds
        self._stuck_seconds = stuck_seconds
        self._observe = observe
        self._changed = threading.Condition()
        self._waiting: deque[_Text] = deque()  # not yet cut
        self._rows: deque[Row] = deque()  # not yet in a pass, the oldest first
        self._row_tokens = 0
        self._alive: dict[int, _Text] = {}
        self._next_index = 0
        self._tokens = 0  # of all texts alive
        self._read = float(extractor.batch_tokens) if rate else 0.0  # sub-words, on average over the last passes,
        self._read_seconds = self._read / rate if rate else 0.0  # and the seconds in which they were read
        self._closing = False
        self._running: dict[str, float] = {}  # when the pass of each lane began
        self._last_pass = time.monotonic()
        self._busy_since = self._last_pass
        self._failing = False
        self._busy_seconds = 0.0  # of all lanes
        self._prepared: Pass | None = None
        self._idle_lanes = 0  # that wait for a pass
        self._all_prepared = False  # and none will come
        self._choosing = ThreadPoolExecutor(1, thread_name_prefix="spanlake-choose")
        work = [self._prepare_passes, *(partial(self._score_passes, f"lane {i}") for i in range(extractor.lanes))]
        self._threads = [
            threading.Thread(target=self._run, args=(each,), name="spanlake-batcher", daemon=True) for each in work
        ]
        for thread in self._threads:
            thread.start()

    # --- for callers ------------------------------------------------------------------------------------------------

    def submit(
        self, requests: Sequence[tuple[str, Settings]], deadline: float, *, wait: bool = False
    ) -> list[Future[list[Entity]]]:
        """Queue texts, all or none; each is answered, or fails, by itself. Cancel a future to drop its text.

        `deadline` is in time.monotonic(). `wait` queues texts however long the queue is, for callers that bound their
        own number.
        Raises: OverloadedError where the queue is full, StoppedError when closing, UserError for a label that the model
        cannot read.
        """
        costs = [self._estimate(text, settings) for text, settings in requests]
        with self._changed:
            if self._closing:
                raise StoppedError("The model is being shut down; try again.")
            delay = self.queue_delay
            if not wait and delay > self._queue_seconds:
                raise OverloadedError(delay, self._queue_seconds)
            if not self._alive:
                self._busy_since = time.monotonic()
            texts = []
            for (text, settings), cost in zip(requests, costs, strict=True):
                texts.append(_Text(self._next_index, text, settings, deadline, cost))
                self._alive[self._next_index] = texts[-1]
                self._tokens += cost
                self._next_index += 1
            self._waiting.extend(texts)
            self._changed.notify_all()
        for item in texts:
            item.answer.add_done_callback(partial(self._forget, item))
        return [item.answer for item in texts]

    @property
    def queued_tokens(self) -> int:
        """Sub-words of all texts that are not answered, estimated for those not yet cut."""
        return self._tokens

    @property
    def queue_delay(self) -> float:
        """Seconds until all that is queued is answered, at the rate of the last passes."""
        return self._tokens * self._read_seconds / self._read if self._read else 0.0

    @property
    def idle_seconds(self) -> float:
        """Since a pass last ended, or began."""
        return time.monotonic() - max([self._last_pass, *list(self._running.values())])

    @property
    def is_failing(self) -> bool:
        """Whether no row of the last pass could be scored."""
        return self._failing

    @property
    def busy_seconds(self) -> float:
        """That passes have taken of each lane's time, those that run included."""
        with self._changed:
            now = time.monotonic()
            running = sum(now - began for began in self._running.values())
            return (self._busy_seconds + running) / self._extractor.lanes

    def is_stuck(self) -> bool:
        """Whether a pass takes too long, or a thread has died. Then every text fails, and it never answers again."""
        with self._changed:
            overdue = any(time.monotonic() - began > self._stuck_seconds for began in self._running.values())
        dead = not self._closing and not all(thread.is_alive() for thread in self._threads)
        if overdue or dead:
            self._stop(StoppedError("The model does not answer; try again."))
        return overdue or dead

    def close(self, seconds: float) -> bool:
        """Take no more texts, answer those that are queued for at most `seconds`, and stop.

        Returns whether all passes have ended.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._choosing.shutdown(wait=True)
        self._stop(StoppedError("The model is being shut down; try again."))
        return not any(thread.is_alive() for thread in self._threads)

    # --- the queue --------------------------------------------------------------------------------------------------

    def _estimate(self, text: str, settings: Settings) -> int:
        groups, prompt_tokens = self._extractor.prompt_size(settings)
        own = len(text) // _CHARACTERS_PER_TOKEN + 1
        windows = 1 + own // self._extractor.package.config.max_tokens
        return groups * own + windows * prompt_tokens

    def _forget(self, item: _Text, _: Future[list[Entity]]) -> None:
        """Called once when a text is answered, has failed or was cancelled; its rows are left out of later passes."""
        with self._changed:
            if self._alive.pop(item.index, None) is not None:
                self._tokens -= item.cost

    def _stop(self, error: StoppedError) -> None:
        with self._changed:
            self._closing = True
            left = list(self._alive.values())
            self._changed.notify_all()
        for item in left:
            _fail(item.answer, error)

    # --- preparing --------------------------------------------------------------------------------------------------

    def _prepare_passes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._can_cut or self._can_prepare or self._is_done)
                if self._is_done:
                    self._all_prepared = True
                    self._changed.notify_all()
                    return
            self._cut_texts()
            if self._can_prepare and (rows := self._take_rows()):
                prepared = self._extractor.scorer.prepare(rows)
                with self._changed:
                    self._prepared = prepared
                    self._changed.notify_all()

    @property
    def _can_cut(self) -> bool:
        """Whether texts wait, and there are not yet rows enough for a pass to choose from."""
        return bool(self._waiting) and self._row_tokens < 2 * self._extractor.batch_tokens

    @property
    def _can_prepare(self) -> bool:
        full = self._row_tokens >= self._extractor.batch_tokens
        return bool(self._rows) and self._prepared is None and (bool(self._idle_lanes) or full)

    @property
    def _is_done(self) -> bool:
        return self._closing and not self._waiting and not self._rows

    def _cut_texts(self) -> None:
        """Cut the oldest texts into rows; while a lane waits, no more than fill a pass."""
        while self._can_cut and not (self._can_prepare and self._row_tokens >= self._extractor.batch_tokens):
            item = self._waiting.popleft()
            if not item.is_wanted():
                continue
            try:
                item.planned, rows = self._extractor.plan(item.index, item.text, item.settings)
            except Exception as error:  # of this text alone
                _fail(item.answer, error)
                continue
            if not rows:
                _answer(item.answer, [])
                continue
            item.rows_left = len(rows)
            cost = sum(row.tokens for row in rows)
            self._rows.extend(rows)
            self._row_tokens += cost
            with self._changed:
                if item.index in self._alive:
                    self._tokens += cost - item.cost
                    item.cost = cost

    def _take_rows(self) -> list[Row]:
        """The oldest row whose text is still wanted, and those after it that fit beside it."""
        chosen: list[Row] = []
        passed_over: list[Row] = []
        longest = labels = 0
        while self._rows and len(passed_over) < _LOOK_AHEAD:
            row = self._rows.popleft()
            self._row_tokens -= row.tokens
            item = self._alive.get(row.text)
            if item is None or not item.is_wanted():
                continue
            longer, more = max(longest, row.tokens), max(labels, row.group.count)
            apart = chosen and not 1 / _LENGTHS_APART <= row.tokens / chosen[0].tokens <= _LENGTHS_APART
            cost = longer * (len(chosen) + 1) * max(1.0, more / _LABELS)
            if chosen and (apart or cost > self._extractor.batch_tokens):
                passed_over.append(row)
                continue
            chosen.append(row)
            longest, labels = longer, more
        self._rows.extendleft(reversed(passed_over))
        self._row_tokens += sum(row.tokens for row in passed_over)
        return chosen

    # --- scoring ----------------------------------------------------------------------------------------------------

    def _score_passes(self, lane: str) -> None:
        while True:
            with self._changed:
                self._idle_lanes += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._prepared is not None or self._all_prepared)
                self._idle_lanes -= 1
                if self._prepared is None:
                    return
                work = self._prepared
                self._prepared = None
                self._running[lane] = began = time.monotonic()
                self._changed.notify_all()
            found = self._score(work)
            with self._changed:
                ended = time.monotonic()
                del self._running[lane]
                self._account(work.tokens, ended - max(self._last_pass, self._busy_since))
                self._last_pass = ended
                self._failing = not found
                self._busy_seconds += ended - began
            self._observe(PassReport(len(work.rows), work.tokens, work.padded_tokens, ended - began))
            self._choosing.submit(self._deliver, work.rows, found)

    def _score(self, work: Pass) -> list[Candidates]:
        """A pass that fails is halved until the row that makes it fail stands alone; only its text fails."""
        rows = work.rows
        try:
            return [self._extractor.scorer.submit(work).result()]
        except Exception as error:
            if len(rows) == 1:
                if item := self._alive.get(rows[0].text):
                    _fail(item.answer, error)
                return []
        middle = len(rows) // 2
        return [
            found
            for part in (rows[:middle], rows[middle:])
            for found in self._score(self._extractor.scorer.prepare(part))
        ]

    def _account(self, tokens: int, seconds: float) -> None:
        """`seconds`: from the end of the pass before, in whatever lane, or from when there was something to do: all
        that a queue waits for. A pass that is hardly filled says little of what full ones do.
        """
        weight = _RATE_WEIGHT * min(1.0, tokens / self._extractor.batch_tokens) if self._read else 1.0
        self._read += weight * (tokens - self._read)
        self._read_seconds += weight * (max(seconds, 1e-6) - self._read_seconds)

    def _deliver(self, rows: list[Row], found: list[Candidates]) -> None:
        indexes = sorted({row.text for row in rows})
        parts = join(found).by_text(indexes) if found else ()
        for index, part in zip(indexes, parts, strict=bool(found)):
            if item := self._alive.get(index):
                item.found.append(part)
                item.rows_left -= sum(row.text == index for row in rows)
                if not item.rows_left and item.planned:
                    self._choose(item, item.planned)

    def _choose(self, item: _Text, planned: PlannedText) -> None:
        try:
            entities = choose(planned, item.settings, join(item.found))
        except Exception as error:  # of this text alone
            _fail(item.answer, error)
        else:
            _answer(item.answer, entities)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("a thread of the batcher has died")
            self._stop(StoppedError("The model does not answer; try again."))


def _answer(future: Future[list[Entity]], entities: list[Entity]) -> None:
    with suppress(InvalidStateError):  # cancelled, or failed by another thread
        future.set_result(entities)


def _fail(future: Future[list[Entity]], error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
