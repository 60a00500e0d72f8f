"""Takes the texts of a queue through one Extractor: cuts them, fills passes, chooses the entities.

The event loop decides which work comes next, and does work that takes less than a hand-over to another thread is worth.
One thread cuts more texts and lays out larger passes, the Extractor's lanes score them, and two threads choose among
more spans. One pass is laid out ahead, as soon as it is full. A pass that is not full stays open for texts that arrive,
until a lane is free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from spanlake.decoding import Entity
from spanlake.inference.candidates import Candidates, choose, join
from spanlake.inference.extractor import Extractor
from spanlake.inference.planning import Row
from spanlake.inference.scoring import Pass
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText
from spanlake.serving.lanes import Lanes
from spanlake.serving.queue import Caller, Queue, Search, StoppedError, Text, row_cost

_SLICE = 10_000  # spans to choose among, and characters that rules read, before other callers have their turn
# What the event loop does itself, in about half a millisecond. A hand-over to a thread and back costs a tenth of that.
_SHORT_CHARACTERS = 4000  # to cut
_SHORT_TOKENS = 2000  # to lay out
_SHORT_SPANS = 500  # to choose among

_KNOWN_SEARCHES = 256

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassReport:
    """The work of one forward pass."""

    rows: int
    tokens: int  # sub-words of the rows
    padded_tokens: int  # that were computed
    seconds: float


Observer = Callable[[PassReport], None]


class Runner:
    """Answers texts with one Extractor. Belongs to one event loop."""

    def __init__(
        self,
        extractor: Extractor,
        queue: Queue,
        *,
        stuck_seconds: float,
        observe: Observer = lambda report: None,
    ) -> None:
        """After `stuck_seconds` in a pass, the model counts as dead."""
        self.queue = queue
        self.lanes = Lanes(extractor.lanes)
        self._extractor = extractor
        self._stuck_seconds = stuck_seconds
        self._observe = observe
        self._busy_since = time.monotonic()
        self._is_closing = False
        self._is_dead = False
        self._cutter = ThreadPoolExecutor(1, "spanlake-cut")
        self._chooser = ThreadPoolExecutor(1, "spanlake-choose")
        self._long_chooser = ThreadPoolExecutor(1, "spanlake-choose-long")  # so that texts with few spans need not wait
        self._known: dict[Settings, Search] = {}  # read before
        self._newest: tuple[list[Row], Future[Candidates]] | None = None  # the pass that began last
        self._passes: set[asyncio.Task[None]] = set()
        self._filling = asyncio.create_task(self._guarded(self._fill_passes()))

    async def read(self, settings: Sequence[Settings]) -> list[Search]:
        """Returns what to submit texts with, one for each of the settings.

        Raises: UserError for a label that the model cannot read.
        """
        known = self._known
        if new := set(settings) - known.keys():
            known = known | await asyncio.to_thread(_searches, self._extractor, new)
            self._known = known if len(known) <= _KNOWN_SEARCHES else {}
        return [known[each] for each in settings]

    def submit(
        self, caller: Caller, texts: Sequence[str], searches: Sequence[Search], deadline: float
    ) -> list[asyncio.Future[list[Entity]]]:
        """Queues texts, each with its search, and returns their future answers. Each text is answered, or fails, by
        itself.

        `deadline` is in time.monotonic(). Call the queue's `check_room` first, unless the number of texts in work is
        bounded in another way.
        Raises: StoppedError after `close`, or where the model is dead.
        """
        if self._is_closing:
            raise StoppedError("The model is being shut down; try again.")
        if not self.queue.cost:
            self._busy_since = time.monotonic()
        return self.queue.add(caller, texts, searches, deadline)

    def is_stuck(self) -> bool:
        """Returns whether a pass takes too long, or the runner has failed. If so, all texts fail, now and later."""
        stuck = self._is_dead or self.lanes.longest_seconds > self._stuck_seconds
        if stuck:
            self._stop(StoppedError("The model does not answer; try again."))
        return stuck

    async def close(self, seconds: float) -> bool:
        """Refuses new texts, answers the queued texts for at most `seconds`, and stops.

        Returns whether all passes have ended.
        """
        deadline = time.monotonic() + seconds
        self._is_closing = True
        self.queue.changed.set()
        await asyncio.wait([self._filling], timeout=seconds)
        if self._passes:
            await asyncio.wait(self._passes, timeout=max(0.0, deadline - time.monotonic()))
        self._stop(StoppedError("The model is being shut down; try again."))
        has_ended = not self._passes
        for task in (self._filling, *self._passes):
            task.cancel()
        for threads in (self._cutter, self._chooser, self._long_chooser):
            threads.shutdown(wait=False)
        return has_ended

    def _stop(self, error: StoppedError) -> None:
        self._is_closing = True
        self.queue.changed.set()
        self.queue.fail_all(error)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            _log.exception("the runner of a model has failed")
            self._is_dead = True
            self._stop(StoppedError("The model does not answer; try again."))

    async def _fill_passes(self) -> None:
        while not (self._is_closing and self.queue.is_empty):
            is_urgent = self.lanes.has_free
            self._drop_unwanted_pass()
            if texts := self.queue.take_uncut(is_urgent=is_urgent):
                await self._cut(texts)
            elif not self.lanes.has_next and self.queue.has_pass(is_urgent=is_urgent):
                if rows := self.queue.take_rows():
                    self._begin_pass(await self._prepare(rows))
            else:
                self.queue.changed.clear()
                await self.queue.changed.wait()

    async def _cut(self, texts: list[Text]) -> None:
        work = [(text.index, text.text, text.settings) for text in texts]
        is_short = sum(len(text.text) for text in texts) <= _SHORT_CHARACTERS
        plans = await _done(None if is_short else self._cutter, _plan_all, self._extractor, work)
        for text, plan in zip(texts, plans, strict=True):
            if isinstance(plan, Exception):  # of this text alone
                text.finish(plan)
            else:
                self.queue.add_rows(text, *plan)

    async def _prepare(self, rows: list[Row]) -> Pass:
        is_short = sum(row.tokens for row in rows) <= _SHORT_TOKENS
        return await _done(None if is_short else self._cutter, self._extractor.scorer.prepare, rows)

    def _begin_pass(self, work: Pass) -> None:
        number = self.lanes.begin()
        scores = self._extractor.scorer.submit(work)
        self._newest = work.rows, scores
        task = asyncio.create_task(self._guarded(self._run_pass(number, work, scores)))
        self._passes.add(task)
        task.add_done_callback(self._passes.discard)

    def _drop_unwanted_pass(self) -> None:
        """Cancels the pass that waits for a lane, if no caller waits for its rows."""
        if self.lanes.has_next and self._newest and not self.queue.wants(self._newest[0]):
            self._newest[1].cancel()

    async def _run_pass(self, number: int, work: Pass, scores: Future[Candidates]) -> None:
        try:
            found = await self._scored(work, scores)
        except asyncio.CancelledError:
            if not scores.cancelled():
                raise
            self.lanes.drop(number)
            self.queue.changed.set()
            return
        seconds, since_last = self.lanes.end(number, has_failed=not found)
        # The whole time that a queue waits: since the end of the pass before, or since the first text came.
        waited = min(since_last, time.monotonic() - self._busy_since)
        self.queue.rate.account(sum(map(row_cost, work.rows)), waited)
        self.queue.changed.set()
        self._observe(PassReport(len(work.rows), work.tokens, work.padded_tokens, seconds))
        if found:
            await self._choose(work.rows, found)

    async def _scored(self, work: Pass, scores: Future[Candidates]) -> list[Candidates]:
        """Halves a pass that fails until the row that causes the failure is alone. Only the text of this row fails."""
        rows = work.rows
        try:
            return [await asyncio.wrap_future(scores)]
        except Exception as error:
            if len(rows) == 1:
                self.queue.fail(rows[0].text_index, error)
                return []
        found = []
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            part = await self._prepare(half)
            found += await self._scored(part, self._extractor.scorer.submit(part))
        return found

    async def _choose(self, rows: list[Row], found: list[Candidates]) -> None:
        threads = self._chooser_for(sum(len(part.score) for part in found))
        ready = self.queue.add_found(rows, await _done(threads, _by_text, rows, found))
        for texts in _slices(ready):
            results = await _done(self._chooser_for(sum(map(_work_on, texts))), _choose_all, texts)
            for text, result in zip(texts, results, strict=True):
                text.finish(result)

    def _chooser_for(self, spans: int) -> ThreadPoolExecutor | None:
        if spans <= _SHORT_SPANS:
            return None
        return self._chooser if spans <= _SLICE else self._long_chooser


async def _done(threads: ThreadPoolExecutor | None, work: Callable[..., _T], *arguments: Any) -> _T:
    """Returns what `work` returns. Without threads, it runs here and now."""
    if threads is None:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def _slices(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Yields texts in groups with little work each, or one text with much."""
    part: list[Text] = []
    size = 0
    for text in texts:
        if part and size + _work_on(text) > _SLICE:
            yield part
            part, size = [], 0
        part.append(text)
        size += _work_on(text)
    if part:
        yield part


def _work_on(text: Text) -> int:
    """Returns the work of choosing a text's entities: its spans, and the characters that rules read."""
    return text.spans + (len(text.text) if text.settings.rules else 0)


def _searches(extractor: Extractor, settings: Iterable[Settings]) -> dict[Settings, Search]:
    window = extractor.package.config.max_tokens
    return {each: Search(each, *extractor.prompt_size(each), window) for each in settings}


def _plan_all(
    extractor: Extractor, texts: Sequence[tuple[int, str, Settings]]
) -> Sequence[tuple[CutText, list[Row]] | Exception]:
    try:
        return extractor.plan(texts)
    except Exception as error:
        if len(texts) == 1:
            return [error]
    return [plan for text in texts for plan in _plan_all(extractor, [text])]


def _by_text(rows: Sequence[Row], found: Sequence[Candidates]) -> dict[int, Candidates]:
    indexes = sorted({row.text_index for row in rows})
    return dict(zip(indexes, join(found).by_text(indexes), strict=True))


def _choose_all(texts: Sequence[Text]) -> Sequence[list[Entity] | Exception]:
    cuts, parts = [], []
    for place, text in enumerate(texts):
        assert text.cut is not None
        cuts.append((text.cut, text.settings))
        parts += [replace(part, text=np.full_like(part.text, place)) for part in text.found]
    try:
        return choose(cuts, join(parts))
    except Exception as error:
        if len(texts) == 1:
            return [error]
    return [result for text in texts for result in _choose_all([text])]
