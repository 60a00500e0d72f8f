"""What a model finds in the texts of a set, and its scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spanlake.decoding import Entity
from spanlake.evaluation.metrics import Score, Span, Tally, span_of
from spanlake.evaluation.sets import BenchmarkSet
from spanlake.inference.extractor import Extractor
from spanlake.inference.settings import Settings


@dataclass(frozen=True)
class ModelFacts:
    name: str
    fingerprint: str
    max_width: int  # K, words
    calibrated: bool = False
    splitter: str = "gliner"  # cuts the words
    asked: str = ""  # how, if it is a language model at an endpoint: it has neither a fingerprint nor a widest span

    @property
    def identity(self) -> str:
        return self.asked or f"fingerprint {self.fingerprint[:12]}"

    def to_dict(self) -> dict[str, Any]:
        identity = {"asked": self.asked} if self.asked else {"fingerprint": self.fingerprint}
        return {"name": self.name, **identity}

    def unfindable(self, benchmark: BenchmarkSet) -> dict[str, int]:
        """Returns how many mentions of a set the model cannot find, by reason."""
        return benchmark.unfindable(self.max_width, self.splitter)

    @classmethod
    def of(cls, extractor: Extractor) -> ModelFacts:
        package = extractor.package
        config = package.config
        calibrated = package.calibration is not None
        return cls(package.name, package.fingerprint, config.widest, calibrated, config.splitter)


@dataclass(frozen=True)
class SetResult:
    name: str
    texts: int
    overall: Score
    by_label: dict[str, Score]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "texts": self.texts,
            **percent(self.overall),
            "by_label": {label: percent(score) for label, score in self.by_label.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """Everything that a model finds in a set, above a threshold or its own thresholds."""

    benchmark: BenchmarkSet
    found: list[list[Entity]]  # of each text

    def above(self, threshold: float | None) -> list[list[Entity]]:
        """Returns what the model finds above a higher threshold. None keeps everything.

        The decoder begins with the best score, so spans with lower scores do not change the choice above them.
        """
        if threshold is None:
            return self.found
        limit = float(np.float32(threshold))  # scores are compared as float32
        return [[entity for entity in entities if entity.score > limit] for entities in self.found]

    def result(self, threshold: float | None) -> SetResult:
        tally = tally_of(self.above(threshold), self.benchmark.gold)
        return SetResult(self.benchmark.name, len(self.found), tally.overall(), tally.by_label())


def evaluate(
    extractor: Extractor, sets: Sequence[BenchmarkSet], *, threshold: float | None, nested: bool = False
) -> Iterator[Outcome]:
    """Returns what the model finds in the texts of each set. `threshold` None uses the model's own. `nested` is for
    sets that do not state it.

    Raises `UserError` for a threshold or a label that the model cannot take.
    """
    for benchmark in sets:
        asked = [benchmark.asked(example) for example in benchmark.examples]
        yield Outcome(benchmark, find(extractor, texts_of(benchmark), asked, threshold, nested or benchmark.nested))


def tally_of(found: Sequence[Sequence[Entity]], gold: Sequence[Iterable[Span]]) -> Tally:
    """Returns the scores of what was found, counted against the mentions of each text."""
    tally = Tally()
    for entities, mentions in zip(found, gold, strict=True):
        tally.add(map(span_of, entities), mentions)
    return tally


def texts_of(benchmark: BenchmarkSet) -> list[str]:
    return [example.text for example in benchmark.examples]


def find(
    extractor: Extractor, texts: Sequence[str], asked: Sequence[Sequence[str]], threshold: float | None, nested: bool
) -> list[list[Entity]]:
    """Returns the entities of each text. A text without labels has no entities."""
    settings: dict[tuple[str, ...], Settings] = {}
    for labels in asked:
        if labels and tuple(labels) not in settings:
            settings[tuple(labels)] = Settings.make(labels, threshold, nested)
    requests = [(text, settings[tuple(labels)]) for text, labels in zip(texts, asked, strict=True) if labels]
    found = extractor.stream(requests)
    return [next(found) if labels else [] for labels in asked]


def percent(score: Score) -> dict[str, float | int]:
    return {
        "precision": round(100 * score.precision, 2),
        "recall": round(100 * score.recall, 2),
        "f1": round(100 * score.f1, 2),
        "gold": score.gold,
        "predicted": score.predicted,
    }
