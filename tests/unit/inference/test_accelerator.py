"""Runs on the CPU what runs on an accelerator: the kernels by Triton's interpreter, the rest without streams."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spanlake import Entity, Extractor, UserError
from spanlake.calibration import Calibration
from spanlake.inference.accelerator import AcceleratorScorer
from spanlake.inference.planning import Row
from spanlake.inference.settings import Settings
from spanlake.modeling.found import find_spans
from spanlake.modeling.tokens import Batch
from spanlake.package import open_package

CPU = torch.device("cpu")
LABELS = ["person", "place", "date"]
TEXTS = [
    "Ada Lovelace met Charles Babbage in London in June and wrote to Marie Curie in Geneva",
    "Prices fell by 12 percent",
    "",
    " ".join(["Pierre Curie works at the European Union in Warsaw ;"] * 9),  # several windows
]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def accelerated(extractor: Extractor, *, kernel: bool = False) -> Extractor:
    """Returns an Extractor of the same package whose scorer is that of an accelerator."""
    copy = Extractor(extractor.package, CPU, torch.float32, threads=1)
    copy.scorer = AcceleratorScorer(extractor.package, CPU, torch.float32)
    copy.scorer._room_per_word = 50.0  # for all that these texts hold
    if not kernel:
        copy.scorer._find = find_spans  # type: ignore[assignment]
    return copy


def assert_same(found: list[list[Entity]], expected: list[list[Entity]]) -> None:
    assert [[replace(entity, score=0.0) for entity in text] for text in found] == [
        [replace(entity, score=0.0) for entity in text] for text in expected
    ]
    scores = [[entity.score for text in side for entity in text] for side in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("kernel", [False, True], ids=["plain", "kernel"])
@pytest.mark.parametrize("threshold", [0.5, 0.02])
def test_it_finds_the_same_entities(tiny: Extractor, kernel: bool, threshold: float):
    if kernel:
        pytest.importorskip("triton")
    asked = {"threshold": threshold, "nested": True, "multi_label": True}
    expected = tiny.extract(TEXTS, LABELS, **asked)
    assert sum(map(len, expected)) > 20
    assert_same(accelerated(tiny, kernel=kernel).extract(TEXTS, LABELS, **asked), expected)


def test_it_finds_the_same_with_a_calibration(tiny_model_dir: Path):
    package = open_package(str(tiny_model_dir))
    package.metadata["calibration"] = Calibration(0.7, 0.3, 0.6, {"person": 0.4}).to_dict()
    extractor = Extractor(package, CPU, torch.float32)
    assert_same(accelerated(extractor).extract(TEXTS, LABELS), extractor.extract(TEXTS, LABELS))


def test_a_pass_that_finds_more_than_it_has_room_for_runs_again(tiny: Extractor):
    extractor = accelerated(tiny)
    extractor.scorer._room_per_word = 0.01
    assert_same(extractor.extract(TEXTS, LABELS, 0.1), tiny.extract(TEXTS, LABELS, 0.1))
    assert extractor.scorer._room_per_word > 0.01  # the next pass has more room


def test_a_batch_that_does_not_fit_is_halved(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    extractor = accelerated(tiny)
    run, tried = extractor.scorer._pass, []

    def small(rows: list[Row], batch: Batch) -> Any:
        tried.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(rows, batch)

    monkeypatch.setattr(extractor.scorer, "_pass", small)
    texts = [" ".join(TEXTS[0].split()[:count]) for count in range(3, 15)]
    assert_same(extractor.extract(texts, LABELS), tiny.extract(texts, LABELS))
    assert max(tried) > 2


def test_a_row_that_does_not_fit_is_scored_on_the_cpu(
    tiny: Extractor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def never(rows: list[Row], batch: Batch) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    extractor = accelerated(tiny)
    monkeypatch.setattr(extractor.scorer, "_pass", never)
    with caplog.at_level(logging.WARNING):
        assert_same(extractor.extract(TEXTS, LABELS), tiny.extract(TEXTS, LABELS))
    [message] = caplog.messages
    assert "does not fit into the memory of cpu, so such rows are scored on the CPU" in message


def test_numbers_that_float16_cannot_hold_are_an_error(tiny_model_dir: Path):
    package = open_package(str(tiny_model_dir))
    with torch.no_grad():
        package.model.spans.out.weight.mul_(1e5)
    extractor = Extractor(package, CPU, torch.float16)
    extractor.scorer = AcceleratorScorer(package, CPU, torch.float16)
    extractor.scorer._find = find_spans  # type: ignore[assignment]
    with pytest.raises(UserError, match="exceed what float16 holds"):
        extractor.extract(TEXTS, LABELS)


def test_a_pass_begins_while_the_one_before_is_read(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    extractor = accelerated(tiny)
    [(_, rows)] = extractor.plan([(0, TEXTS[0], Settings.make(LABELS))])
    begun, passes = threading.Event(), []
    run = extractor.scorer._pass

    def watch(rows: list[Row], batch: Batch) -> Any:
        [candidates] = run(rows, batch)
        if passes:
            begun.set()
        passes.append(rows)

        def wait() -> Any:
            assert begun.wait(30)  # the second pass, while this first one is read
            return candidates()

        return [wait]

    monkeypatch.setattr(extractor.scorer, "_pass", watch)
    futures = [extractor.scorer.submit(extractor.scorer.prepare(rows)) for _ in range(2)]
    assert all(len(future.result(60).score) for future in futures)
    assert len(passes) == 2


def test_a_cancelled_pass_does_not_run(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    extractor = accelerated(tiny)
    [(_, rows)] = extractor.plan([(0, TEXTS[0], Settings.make(LABELS))])
    go, passes = threading.Event(), []
    run = extractor.scorer._pass

    def watch(rows: list[Row], batch: Batch) -> Any:
        passes.append(rows)
        assert go.wait(30)
        return run(rows, batch)

    monkeypatch.setattr(extractor.scorer, "_pass", watch)
    running, waiting = (extractor.scorer.submit(extractor.scorer.prepare(rows)) for _ in range(2))
    while not passes:
        time.sleep(0.01)
    assert waiting.cancel()
    go.set()
    extractor.close()  # waits for what was submitted
    assert len(passes) == 1
    assert len(running.result().score)
    with pytest.raises(UserError, match="closed"):
        extractor.scorer.submit(running)  # type: ignore[arg-type]
