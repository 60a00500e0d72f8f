"""The queue and its runner: the Extractor's answers whatever comes together, and what happens when things go wrong."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spanlake import Entity, Extractor
from spanlake.errors import UserError
from spanlake.inference.candidates import Candidates
from spanlake.inference.scoring import Pass, Scorer
from spanlake.inference.settings import Settings
from spanlake.package import open_package
from spanlake.serving.queue import DeadlineError, OverloadedError, Queue, Rate, StoppedError
from spanlake.serving.runner import Observer, PassReport, Runner

pytestmark = pytest.mark.anyio

PERSON = Settings.make(["person", "place"], 0.4)
OTHERS = [
    PERSON,
    Settings.make(["city"], 0.3),
    Settings.make({"who": "name of a person", "where": "place"}, {"who": 0.2, "where": 0.6}, nested=True),
    Settings.make([f"type {i}" for i in range(14)], 0.45, multi_label=True),  # more labels than a prompt holds
]
WORDS = "Ada Lovelace met Charles Babbage in London ; the Union of Nations wrote to Marie Curie in Geneva 🙂 é".split()  # noqa: SIM905


class SlowScorer(Scorer):
    """Waits before each pass until `go` is set, and can be told to fail at a text's rows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.go = threading.Event()
        self.go.set()
        self.passes: list[list[int]] = []
        self.poison: set[int] = set()

    def _score(self, work: Pass) -> Candidates:
        self.go.wait(30)
        self.passes.append([row.text_index for row in work.rows])
        if self.poison & {row.text_index for row in work.rows}:
            raise RuntimeError("poison")
        return super()._score(work)


class Slow(Extractor):
    scorer: SlowScorer


def slow(model: Path, threads: int) -> Slow:
    extractor = Slow(open_package(str(model)), torch.device("cpu"), torch.float32, batch_tokens=512, threads=threads)
    extractor.scorer = SlowScorer(extractor.package, extractor.device, extractor.precision, extractor.lanes)
    return extractor


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def extractor(tiny_model_dir: Path) -> Slow:
    return slow(tiny_model_dir, threads=1)


def start(
    extractor: Slow,
    *,
    queue_seconds: float = 60,
    stuck_seconds: float = 60,
    observe: Observer = lambda report: None,
) -> Runner:
    queue = Queue(extractor.batch_tokens, queue_seconds, Rate(extractor.batch_tokens))
    return Runner(extractor, queue, stuck_seconds=stuck_seconds, observe=observe)


@pytest.fixture
async def runner(extractor: Slow) -> AsyncIterator[Runner]:
    runner = start(extractor)
    yield runner
    extractor.scorer.go.set()
    await runner.close(30)


def later(seconds: float = 60) -> float:
    return time.monotonic() + seconds


async def until(done: Callable[[], bool]) -> None:
    deadline = later(30)
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def outcomes(answers: list[asyncio.Future[list[Entity]]]) -> list[Any]:
    """The entities of each text, or its error."""
    return await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 60)


@pytest.mark.parametrize("lanes", [1, 3])
async def test_answers_are_the_extractors_in_whatever_batch(tiny_model_dir: Path, lanes: int) -> None:
    extractor = slow(tiny_model_dir, lanes)
    runner = start(extractor)
    rng = random.Random(3)
    requests = []
    for _ in range(150):
        count = rng.choice([0, 1, 3, 8, 20, 40, 200])
        requests.append((" ".join(rng.choices(WORDS, k=count)), rng.choice(OTHERS)))
    answers = []
    for first in range(0, len(requests), 7):
        answers += runner.submit(requests[first : first + 7], later())
        await asyncio.sleep(0.001)
    found = await outcomes(answers)
    expected = list(extractor.stream(requests))
    for (text, _), ours, theirs in zip(requests, found, expected, strict=True):
        assert [(e.start, e.end, e.label) for e in ours] == [(e.start, e.end, e.label) for e in theirs], text
        assert [e.score for e in ours] == pytest.approx([e.score for e in theirs], abs=1e-5)
    assert sum(map(len, expected)) > 100
    assert runner.queue.tokens == 0
    assert len(extractor.scorer.passes) < len(requests)  # they were batched
    await runner.close(30)


async def test_every_lane_works_and_one_that_is_stuck_is_noticed(tiny_model_dir: Path) -> None:
    extractor = slow(tiny_model_dir, threads=3)
    runner = start(extractor, stuck_seconds=0.5)
    extractor.scorer.go.clear()
    answers = []
    for lane in range(1, 4):
        answers += runner.submit([("Ada met Charles", PERSON)], later())
        await until(lambda lane=lane: runner.lanes.running == lane)
    began = time.monotonic()
    before = runner.lanes.busy_seconds
    await asyncio.sleep(0.2)
    assert runner.lanes.busy_seconds - before == pytest.approx(time.monotonic() - began, abs=0.1)  # all of its time
    extractor.scorer.go.set()
    assert all(isinstance(found, list) for found in await outcomes(answers))
    assert not runner.is_stuck()
    extractor.scorer.go.clear()
    late = runner.submit([("Marie Curie", PERSON)], later())  # one lane of three
    await until(runner.is_stuck)
    assert [type(error) for error in await outcomes(late)] == [StoppedError]
    extractor.scorer.go.set()


async def test_passes_keep_to_the_budget_and_take_the_oldest_first(extractor: Slow) -> None:
    reports: list[PassReport] = []
    runner = start(extractor, observe=reports.append)
    extractor.scorer.go.clear()
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([2, 12, 40]))) for _ in range(60)]
    answers = [runner.submit([(text, PERSON)], later())[0] for text in texts]
    extractor.scorer.go.set()
    await outcomes(answers)
    await runner.close(30)
    assert all(report.padded_tokens <= 512 or report.rows == 1 for report in reports)
    done: set[int] = set()
    for taken in extractor.scorer.passes:
        assert min(set(range(60)) - done) in taken
        done |= set(taken)
    assert sum(report.tokens for report in reports) > 0.5 * sum(report.padded_tokens for report in reports)


async def test_what_arrives_while_the_model_works_goes_together(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    first = runner.submit([("Ada met Charles", PERSON)], later())
    await until(lambda: runner.lanes.running > 0)
    others = [runner.submit([("Marie Curie", PERSON)], later())[0] for _ in range(20)]
    await asyncio.sleep(0.1)  # they are cut, and no pass of them is begun
    extractor.scorer.go.set()
    await outcomes([*first, *others])
    assert extractor.scorer.passes == [[0], list(range(1, 21))]


async def test_a_full_pass_is_laid_out_while_another_runs(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    answers = [runner.submit([("Ada met Charles in London", PERSON)], later())[0] for _ in range(200)]
    await until(lambda: runner.lanes.has_next)
    await asyncio.sleep(0.1)
    assert runner.lanes.running == 2  # the one that runs, and no more than one ahead
    extractor.scorer.go.set()
    await outcomes(answers)


async def test_a_text_that_fails_answers_alone(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.poison = {2}
    found = await outcomes(runner.submit([("Ada met Charles", PERSON)] * 6, later()))
    assert [type(each).__name__ for each in found] == ["RuntimeError" if i == 2 else "list" for i in range(6)]


async def test_a_label_that_cannot_be_read_is_refused_at_once(runner: Runner) -> None:
    with pytest.raises(UserError, match="sub-words"):
        runner.submit([("Ada", PERSON), ("Ada", Settings.make(["long " * 200]))], later())
    assert runner.queue.tokens == 0


async def test_cancelled_texts_are_not_scored(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    first = runner.submit([("Ada met Charles", PERSON)] * 2, later())
    await until(lambda: runner.lanes.running > 0)
    dropped = runner.submit([("Marie Curie in Geneva", PERSON)] * 50, later())
    kept = runner.submit([("London", PERSON)], later())
    for answer in dropped:
        assert answer.cancel()
    extractor.scorer.go.set()
    await outcomes([*first, *kept])
    assert {text for taken in extractor.scorer.passes for text in taken} == {0, 1, 52}
    assert runner.queue.tokens == 0


async def test_a_text_that_is_late_is_told_so_and_not_scored(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    blocking = [runner.submit([("Ada met Charles " * 10, PERSON)], later())[0] for _ in range(30)]
    late = runner.submit([("London", PERSON)], later(0.05))
    await asyncio.sleep(0.1)
    extractor.scorer.go.set()
    await outcomes(blocking)
    assert [type(error) for error in await outcomes(late)] == [DeadlineError]


async def test_a_full_queue_refuses_and_says_for_how_long(extractor: Slow) -> None:
    runner = start(extractor, queue_seconds=0.0001)
    await outcomes(runner.submit([("Ada met Charles in London", PERSON)] * 20, later()))  # measures the rate
    runner.queue.check_room()
    extractor.scorer.go.clear()
    answers = runner.submit([("Ada met Charles in London", PERSON)] * 200, later())
    with pytest.raises(OverloadedError) as refused:
        runner.queue.check_room()
    assert refused.value.retry_after >= 1
    extractor.scorer.go.set()
    await outcomes(answers)
    runner.queue.check_room()
    await runner.close(30)


async def test_a_stuck_pass_is_noticed_and_every_text_fails(extractor: Slow) -> None:
    runner = start(extractor, stuck_seconds=0.2)
    assert not runner.is_stuck()
    extractor.scorer.go.clear()
    answers = runner.submit([("Ada met Charles", PERSON)] * 3, later())
    await until(runner.is_stuck)
    assert [type(error) for error in await outcomes(answers)] == [StoppedError] * 3
    with pytest.raises(StoppedError):
        runner.submit([("Ada", PERSON)], later())
    extractor.scorer.go.set()


async def test_closing_answers_what_is_queued(extractor: Slow) -> None:
    runner = start(extractor)
    answers = runner.submit([("Ada met Charles in London", PERSON)] * 100, later())
    assert await runner.close(30)
    assert all(answer.result() is not None for answer in answers)
    with pytest.raises(StoppedError):
        runner.submit([("Ada", PERSON)], later())


async def test_closing_gives_up_in_time(extractor: Slow) -> None:
    runner = start(extractor)
    extractor.scorer.go.clear()
    answers = runner.submit([("Ada met Charles in London", PERSON)] * 100, later())
    await until(lambda: runner.lanes.running > 0)
    assert not await runner.close(0.1)
    assert {type(error) for error in await outcomes(answers)} == {StoppedError}
    extractor.scorer.go.set()
