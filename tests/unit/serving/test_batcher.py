"""The batcher: the same answers as the Extractor's whatever comes together, and what happens when things go wrong."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from spanlake import Extractor
from spanlake.errors import UserError
from spanlake.inference.candidates import Candidates
from spanlake.inference.scoring import Pass, Scorer
from spanlake.inference.settings import Settings
from spanlake.package import open_package
from spanlake.serving.batcher import Batcher, DeadlineError, OverloadedError, PassReport, StoppedError

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
        self.passes.append([row.text for row in work.rows])
        if self.poison & {row.text for row in work.rows}:
            raise RuntimeError("poison")
        return super()._score(work)


class Slow(Extractor):
    scorer: SlowScorer


def slow(model: Path, threads: int) -> Slow:
    extractor = Slow(open_package(str(model)), torch.device("cpu"), torch.float32, batch_tokens=512, threads=threads)
    extractor.scorer = SlowScorer(extractor.package, extractor.device, extractor.precision, extractor.lanes)
    return extractor


@pytest.fixture
def extractor(tiny_model_dir: Path) -> Slow:
    return slow(tiny_model_dir, threads=1)


@pytest.fixture
def batcher(extractor: Slow) -> Iterator[Batcher]:
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=60)
    yield batcher
    extractor.scorer.go.set()
    batcher.close(30)


def later(seconds: float = 60) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("lanes", [1, 3])
def test_answers_are_the_extractors_in_whatever_batch(tiny_model_dir: Path, lanes: int) -> None:
    extractor = slow(tiny_model_dir, lanes)
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=60)
    rng = random.Random(3)
    requests = []
    for _ in range(150):
        count = rng.choice([0, 1, 3, 8, 20, 40, 200])
        requests.append((" ".join(rng.choices(WORDS, k=count)), rng.choice(OTHERS)))
    futures = []
    for start in range(0, len(requests), 7):
        futures += batcher.submit(requests[start : start + 7], later())
    found = [future.result(60) for future in futures]
    expected = list(extractor.stream(requests))
    for (text, _), ours, theirs in zip(requests, found, expected, strict=True):
        assert [(e.start, e.end, e.label) for e in ours] == [(e.start, e.end, e.label) for e in theirs], text
        assert [e.score for e in ours] == pytest.approx([e.score for e in theirs], abs=1e-5)
    assert sum(map(len, expected)) > 100
    assert batcher.queued_tokens == 0
    assert len(extractor.scorer.passes) < len(requests)  # they were batched
    batcher.close(30)


def test_every_lane_works_and_one_that_is_stuck_is_noticed(tiny_model_dir: Path) -> None:
    extractor = slow(tiny_model_dir, threads=3)
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=0.5)
    extractor.scorer.go.clear()
    futures = []
    for lane in range(1, 4):
        futures += batcher.submit([("Ada met Charles", PERSON)], later())
        deadline = later(30)
        while len(batcher._running) < lane:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    began = time.monotonic()
    before = batcher.busy_seconds
    time.sleep(0.2)
    assert batcher.busy_seconds - before == pytest.approx(time.monotonic() - began, abs=0.1)  # all of its time
    extractor.scorer.go.set()
    wait(futures, 30)
    assert all(future.exception() is None for future in futures)
    assert not batcher.is_stuck()
    extractor.scorer.go.clear()
    late = batcher.submit([("Marie Curie", PERSON)], later())  # one lane of three
    deadline = later(30)
    while not batcher.is_stuck():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert isinstance(late[0].exception(5), StoppedError)
    extractor.scorer.go.set()


def test_passes_keep_to_the_budget_and_take_the_oldest_first(extractor: Slow) -> None:
    reports: list[PassReport] = []
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=60, observe=reports.append)
    extractor.scorer.go.clear()
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([2, 12, 40]))) for _ in range(60)]
    futures = [batcher.submit([(text, PERSON)], later())[0] for text in texts]
    extractor.scorer.go.set()
    wait(futures, 60)
    batcher.close(30)
    assert all(report.padded_tokens <= 512 or report.rows == 1 for report in reports)
    done: set[int] = set()
    for taken in extractor.scorer.passes:
        assert min(set(range(60)) - done) in taken
        done |= set(taken)
    assert sum(report.tokens for report in reports) > 0.5 * sum(report.padded_tokens for report in reports)


def test_what_arrives_while_the_model_works_goes_together(extractor: Slow, batcher: Batcher) -> None:
    extractor.scorer.go.clear()
    first = batcher.submit([("Ada met Charles", PERSON)], later())
    deadline = later()
    while not batcher.busy_seconds:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    others = [batcher.submit([("Marie Curie", PERSON)], later())[0] for _ in range(20)]
    extractor.scorer.go.set()
    wait([*first, *others], 30)
    assert extractor.scorer.passes == [[0], list(range(1, 21))]


def test_a_text_that_fails_answers_alone(extractor: Slow, batcher: Batcher) -> None:
    extractor.scorer.poison = {2}
    futures = batcher.submit([("Ada met Charles", PERSON)] * 6, later())
    wait(futures, 30)
    assert [type(future.exception()).__name__ for future in futures] == [
        "RuntimeError" if i == 2 else "NoneType" for i in range(6)
    ]


def test_a_label_that_cannot_be_read_is_refused_at_once(batcher: Batcher) -> None:
    with pytest.raises(UserError, match="sub-words"):
        batcher.submit([("Ada", PERSON), ("Ada", Settings.make(["long " * 200]))], later())
    assert batcher.queued_tokens == 0


def test_cancelled_texts_are_not_scored(extractor: Slow, batcher: Batcher) -> None:
    extractor.scorer.go.clear()
    first = batcher.submit([("Ada met Charles", PERSON)] * 2, later())
    while not batcher.queued_tokens:
        time.sleep(0.01)
    dropped = batcher.submit([("Marie Curie in Geneva", PERSON)] * 50, later())
    kept = batcher.submit([("London", PERSON)], later())
    for future in dropped:
        assert future.cancel()
    extractor.scorer.go.set()
    wait([*first, *kept], 30)
    with pytest.raises(CancelledError):
        dropped[0].result(0)
    scored = {text for taken in extractor.scorer.passes for text in taken}
    assert len(scored & set(range(2, 52))) <= 5  # at most what a pass prepared before holds
    assert batcher.queued_tokens == 0


def test_a_text_that_is_late_is_told_so_and_not_scored(extractor: Slow, batcher: Batcher) -> None:
    extractor.scorer.go.clear()
    blocking = [batcher.submit([("Ada met Charles " * 10, PERSON)], later())[0] for _ in range(30)]
    late = batcher.submit([("London", PERSON)], later(0.05))[0]
    time.sleep(0.1)
    extractor.scorer.go.set()
    wait([*blocking, late], 30)
    assert isinstance(late.exception(), DeadlineError)


def test_a_full_queue_refuses_and_says_for_how_long(extractor: Slow) -> None:
    batcher = Batcher(extractor, queue_seconds=0.0001, stuck_seconds=60)
    batcher.submit([("Ada met Charles in London", PERSON)] * 20, later())[0].result(30)  # measures the rate
    extractor.scorer.go.clear()
    accepted = batcher.submit([("Ada met Charles in London", PERSON)] * 200, later())  # an empty queue takes anything
    with pytest.raises(OverloadedError) as refused:
        batcher.submit([("London", PERSON)], later())
    assert refused.value.retry_after >= 1
    patient = batcher.submit([("London", PERSON)], later(), wait=True)
    extractor.scorer.go.set()
    wait([*accepted, *patient], 30)
    assert patient[0].exception() is None
    batcher.close(30)


def test_a_stuck_pass_is_noticed_and_every_text_fails(extractor: Slow) -> None:
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=0.2)
    assert not batcher.is_stuck()
    extractor.scorer.go.clear()
    futures = batcher.submit([("Ada met Charles", PERSON)] * 3, later())
    deadline = later(30)
    while not batcher.is_stuck():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(isinstance(future.exception(5), StoppedError) for future in futures)
    with pytest.raises(StoppedError):
        batcher.submit([("Ada", PERSON)], later())
    extractor.scorer.go.set()


def test_closing_answers_what_is_queued(extractor: Slow) -> None:
    batcher = Batcher(extractor, queue_seconds=60, stuck_seconds=60)
    futures = batcher.submit([("Ada met Charles in London", PERSON)] * 100, later())
    batcher.close(30)
    assert all(future.result(0) is not None for future in futures)
    with pytest.raises(StoppedError):
        batcher.submit([("Ada", PERSON)], later())
