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
from spanlake.inference import candidates
from spanlake.inference import extractor as extractor_module
from spanlake.inference.candidates import Candidates
from spanlake.inference.scoring import Pass, Scorer
from spanlake.inference.settings import Settings
from spanlake.package import open_package
from spanlake.serving import health
from spanlake.serving.config import Limits
from spanlake.serving.queue import (
    Caller,
    DeadlineError,
    OverloadedError,
    Queue,
    Rate,
    Search,
    StoppedError,
    TooMuchError,
)
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


PATIENT = Limits(queue_seconds=60, request_seconds=600)


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
    limits: Limits = PATIENT,
    stuck_seconds: float = 60,
    observe: Observer = lambda report: None,
) -> Runner:
    queue = Queue(extractor.batch_tokens, limits, Rate(extractor.batch_tokens))
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


async def ask(
    runner: Runner, texts: list[str], settings: Settings = PERSON, seconds: float = 60
) -> list[asyncio.Future[list[Entity]]]:
    """As one caller."""
    return runner.submit(Caller(), texts, await runner.read([settings] * len(texts)), later(seconds))


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
    for text, settings in requests:
        answers += await ask(runner, [text], settings)
    found = await outcomes(answers)
    assert len(extractor.scorer.passes) < 0.7 * len(requests)  # they were batched
    expected = list(extractor.stream(requests))
    for (text, _), ours, theirs in zip(requests, found, expected, strict=True):
        assert [(e.start, e.end, e.label) for e in ours] == [(e.start, e.end, e.label) for e in theirs], text
        assert [e.score for e in ours] == pytest.approx([e.score for e in theirs], abs=1e-5)
    assert sum(map(len, expected)) > 100
    assert runner.queue.cost == 0
    await runner.close(30)


async def test_every_lane_works_and_one_that_is_stuck_is_noticed(tiny_model_dir: Path) -> None:
    extractor = slow(tiny_model_dir, threads=3)
    runner = start(extractor, stuck_seconds=0.5)
    extractor.scorer.go.clear()
    answers = []
    for lane in range(1, 4):
        answers += await ask(runner, ["Ada met Charles"])
        await until(lambda lane=lane: runner.lanes.running == lane)
    began = time.monotonic()
    before = runner.lanes.busy_seconds
    await asyncio.sleep(0.2)
    assert runner.lanes.busy_seconds - before == pytest.approx(time.monotonic() - began, abs=0.1)  # all of its time
    extractor.scorer.go.set()
    assert all(isinstance(found, list) for found in await outcomes(answers))
    assert not runner.is_stuck()
    extractor.scorer.go.clear()
    late = await ask(runner, ["Marie Curie"])  # one lane of three
    await until(runner.is_stuck)
    assert [type(error) for error in await outcomes(late)] == [StoppedError]
    extractor.scorer.go.set()


async def test_passes_keep_to_the_budget_and_take_the_oldest_first(extractor: Slow) -> None:
    reports: list[PassReport] = []
    runner = start(extractor, observe=reports.append)
    extractor.scorer.go.clear()
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([2, 12, 40]))) for _ in range(60)]
    answers = [(await ask(runner, [text]))[0] for text in texts]
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
    first = await ask(runner, ["Ada met Charles"])
    await until(lambda: runner.lanes.running > 0)
    others = [(await ask(runner, ["Marie Curie"]))[0] for _ in range(20)]
    await asyncio.sleep(0.1)  # they are cut, and no pass of them is begun
    extractor.scorer.go.set()
    await outcomes([*first, *others])
    assert extractor.scorer.passes == [[0], list(range(1, 21))]


async def test_a_full_pass_is_laid_out_while_another_runs(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    answers = [(await ask(runner, ["Ada met Charles in London"]))[0] for _ in range(200)]
    await until(lambda: runner.lanes.has_next)
    await asyncio.sleep(0.1)
    assert runner.lanes.running == 2  # the one that runs, and no more than one ahead
    extractor.scorer.go.set()
    await outcomes(answers)


async def test_a_text_that_fails_answers_alone(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.poison = {2}
    found = await outcomes(await ask(runner, ["Ada met Charles"] * 6))
    assert [type(each).__name__ for each in found] == ["RuntimeError" if i == 2 else "list" for i in range(6)]


@pytest.mark.parametrize("step", ["plan_rows", "whole_characters"])
async def test_a_text_that_cannot_be_cut_or_chosen_from_fails_alone(
    extractor: Slow, runner: Runner, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Texts are cut together, and chosen from together."""
    module = {"plan_rows": extractor_module, "whole_characters": candidates}[step]
    real = getattr(module, step)

    def failing(*arguments: Any) -> Any:
        if any("poison" in str(getattr(each, "text", each)) for each in arguments[:2]):
            raise RuntimeError("poison")
        return real(*arguments)

    monkeypatch.setattr(module, step, failing)
    everything = Settings.make(["person"], 0.0)
    found = await outcomes(await ask(runner, ["Ada met Charles", "Ada met poison", "Marie Curie"], everything))
    assert [type(each).__name__ for each in found] == ["list", "RuntimeError", "list"]
    assert found[0] and found[2]


async def test_a_label_that_cannot_be_read_is_refused_at_once(runner: Runner) -> None:
    with pytest.raises(UserError, match="sub-words"):
        await ask(runner, ["Ada"], Settings.make(["long " * 200]))
    assert runner.queue.cost == 0


async def test_cancelled_texts_are_not_scored(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    first = await ask(runner, ["Ada met Charles"] * 2)
    await until(lambda: runner.lanes.running > 0)
    dropped = await ask(runner, ["Marie Curie in Geneva"] * 50)
    kept = await ask(runner, ["London"])
    for answer in dropped:
        assert answer.cancel()
    extractor.scorer.go.set()
    await outcomes([*first, *kept])
    assert {text for taken in extractor.scorer.passes for text in taken} == {0, 1, 52}
    assert runner.queue.cost == 0


async def test_a_text_that_is_late_is_told_so_and_not_scored(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    blocking = await ask(runner, ["Ada met Charles " * 10] * 30)
    await until(lambda: runner.lanes.has_next)
    late = await ask(runner, ["London"], seconds=0.05)
    await asyncio.sleep(0.1)
    extractor.scorer.go.set()
    await outcomes(blocking)
    assert [type(error) for error in await outcomes(late)] == [DeadlineError]


async def test_a_full_queue_refuses_and_says_for_how_long(extractor: Slow) -> None:
    runner = start(extractor, limits=Limits(queue_seconds=0.0001, request_seconds=600))
    await outcomes(await ask(runner, ["Ada met Charles in London"] * 20))  # measures the rate
    runner.queue.check_room(10_000)
    extractor.scorer.go.clear()
    answers = await ask(runner, ["Ada met Charles in London"] * 200)
    with pytest.raises(OverloadedError) as refused:
        runner.queue.check_room(1000)
    assert refused.value.retry_after >= 1
    extractor.scorer.go.set()
    await outcomes(answers)
    runner.queue.check_room(1000)
    await runner.close(30)


async def test_who_asks_for_little_need_not_wait_for_who_asks_for_much() -> None:
    queue = Queue(512, Limits(queue_seconds=10, request_seconds=100), Rate(512, 1000))
    search = Search(PERSON, prompts=1, prompt_tokens=10, window_tokens=100)
    queue.add(Caller(), ["x" * 200_000], [search], later())
    assert queue.delay > 50
    queue.check_cost(190_000)
    queue.check_room(1000)
    with pytest.raises(OverloadedError):
        queue.check_room(20_000)
    with pytest.raises(TooMuchError, match="220 s, and a request may take 100 s"):
        queue.check_room(220_000)
    for _ in range(11):
        queue.check_room(1000)
        queue.add(Caller(), ["x" * 3000], [search], later())
    with pytest.raises(OverloadedError):
        queue.check_room(1000)


async def test_callers_have_their_turns_whatever_each_asks_for(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    large = await ask(runner, ["Ada met Charles Babbage in London . " * 400])
    await until(lambda: runner.lanes.has_next)
    small = [(await ask(runner, ["Ada met Charles Babbage in London . " * 3]))[0] for _ in range(3)]
    late = await ask(runner, ["Marie Curie in Geneva"] * 200)
    extractor.scorer.go.set()
    await outcomes([*small, *late, *large])
    assert len(extractor.scorer.passes) > 20
    taken = [number for number, rows in enumerate(extractor.scorer.passes) for text in (1, 2, 3) if text in rows]
    assert max(taken) < 6  # two were begun before, and each caller has one in its turn
    after = [{row == 0 for row in rows} for rows in extractor.scorer.passes[6:]]
    assert after.count({True}) >= 2 and after.count({False}) >= 2  # the large ones go on by turns


async def test_a_long_stream_has_its_turns_among_new_callers(extractor: Slow, runner: Runner) -> None:
    stream, [search] = Caller(is_stream=True), await runner.read([PERSON])
    text = "Ada met Charles Babbage in London . " * 3
    for _ in range(20):
        await outcomes(runner.submit(stream, [text] * 64, [search] * 64, later()))
    extractor.scorer.go.clear()
    begun = len(extractor.scorer.passes)
    others = [await ask(runner, [text] * 50) for _ in range(5)]
    mine = runner.submit(stream, [text] * 10, [search] * 10, later())
    extractor.scorer.go.set()
    await outcomes([*mine, *(answer for answers in others for answer in answers)])
    first = next(number for number, rows in enumerate(extractor.scorer.passes[begun:]) if 20 * 64 + 5 * 50 in rows)
    assert len(extractor.scorer.passes) - begun >= 20
    assert first < 10


async def test_a_caller_whose_texts_have_too_many_spans_is_refused_alone(extractor: Slow) -> None:
    runner = start(extractor, limits=Limits(spans=2000))
    everything = Settings.make(["person", "place"], 0.0, nested=True, multi_label=True)
    refused = await ask(runner, ["Ada met Charles Babbage in London . " * 100] * 3, everything)
    answers = await ask(runner, ["Ada met Charles Babbage in London . "] * 5, everything)
    assert {str(error) for error in await outcomes(refused)} == {
        "More than 2000 spans of the request's texts score above the threshold, each label counted, which is the "
        "most allowed; raise the threshold, or send fewer texts or labels."
    }
    assert all(isinstance(found, list) and found for found in await outcomes(answers))
    assert runner.queue.cost == 0
    await runner.close(30)


async def test_a_pass_that_nobody_waits_for_does_not_begin(extractor: Slow, runner: Runner) -> None:
    extractor.scorer.go.clear()
    kept = await ask(runner, ["Ada met Charles"])
    await until(lambda: runner.lanes.running == 1)
    dropped = await ask(runner, ["Ada met Charles in London"] * 200)
    await until(lambda: runner.lanes.has_next)
    for answer in dropped:
        answer.cancel()
    await until(lambda: not runner.lanes.has_next)
    extractor.scorer.go.set()
    await outcomes([*kept, *(await ask(runner, ["Marie Curie"]))])
    assert extractor.scorer.passes == [[0], [201]]


async def test_a_stuck_pass_is_noticed_and_every_text_fails(extractor: Slow) -> None:
    runner = start(extractor, stuck_seconds=0.2)
    assert not runner.is_stuck()
    extractor.scorer.go.clear()
    answers = await ask(runner, ["Ada met Charles"] * 3)
    await until(runner.is_stuck)
    assert [type(error) for error in await outcomes(answers)] == [StoppedError] * 3
    with pytest.raises(StoppedError):
        await ask(runner, ["Ada"])
    extractor.scorer.go.set()


async def test_closing_answers_what_is_queued(extractor: Slow) -> None:
    runner = start(extractor)
    answers = await ask(runner, ["Ada met Charles in London"] * 100)
    assert await runner.close(30)
    assert all(answer.result() is not None for answer in answers)
    with pytest.raises(StoppedError):
        await ask(runner, ["Ada"])


async def test_closing_gives_up_in_time(extractor: Slow) -> None:
    runner = start(extractor)
    extractor.scorer.go.clear()
    answers = await ask(runner, ["Ada met Charles in London"] * 100)
    await until(lambda: runner.lanes.running > 0)
    assert not await runner.close(0.1)
    assert {type(error) for error in await outcomes(answers)} == {StoppedError}
    extractor.scorer.go.set()


async def test_health_is_told_at_once_and_follows_what_passes_do(
    extractor: Slow, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_QUIET_SECONDS", 0.0)
    checked = health.Health(runner)
    extractor.scorer.go.clear()
    assert checked.problem() is None  # nothing is known against it
    await until(lambda: runner.lanes.running == 1)  # a trial
    assert checked.problem() is None and runner.lanes.running == 1
    extractor.scorer.poison = set(range(100))
    extractor.scorer.go.set()
    await until(lambda: checked.problem() is not None)
    assert "failed" in str(checked.problem())
    extractor.scorer.poison = set()
    await until(lambda: checked.problem() is None)
    assert not runner.lanes.is_failing


async def test_a_trial_that_does_not_end_is_a_problem(
    extractor: Slow, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(health, "_TRIAL_SECONDS", 0.1)
    checked = health.Health(runner)
    extractor.scorer.go.clear()
    await until(lambda: checked.problem() is not None)
    assert "0.1 s" in str(checked.problem())
