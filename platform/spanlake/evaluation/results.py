"""One evaluation as a whole: a model on the sets of a suite, at one threshold or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spanlake.evaluation.baseline import Answers
from spanlake.evaluation.scores import ModelFacts, Outcome, SetResult, percent
from spanlake.evaluation.sets import Split
from spanlake.evaluation.suites import Missing, Suite


@dataclass(frozen=True)
class Average:
    """The mean F1 of those sets of a suite that are there."""

    name: str
    f1: float  # 0 to 1
    sets: int
    of: int  # sets of the suite

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "f1": round(100 * self.f1, 2), "sets": self.sets, "of": self.of}


@dataclass(frozen=True)
class Evaluation:
    model: ModelFacts
    outcomes: Sequence[Outcome]
    ranked: Sequence[Outcome]  # the same sets from a low threshold up, for curves
    thresholds: Sequence[float | None]  # the first is that of the tables; None: the model's own
    split: Split
    suite: Suite | None = None
    missing: Sequence[Missing] = ()
    answers: Answers | None = None  # of a language model

    @property
    def threshold(self) -> float | None:
        return self.thresholds[0]

    @property
    def said_threshold(self) -> str:
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        return "no threshold" if self.model.asked else "the model's own thresholds"

    def results(self) -> list[SetResult]:
        return [outcome.result(self.threshold) for outcome in self.outcomes]

    def to_dict(self) -> dict[str, Any]:
        results = self.results()
        sets = []
        for outcome, result in zip(self.outcomes, results, strict=True):
            unfindable = self.model.unfindable(outcome.benchmark)
            sets.append({**result.to_dict(), "nested": outcome.benchmark.nested, "unfindable": unfindable})
        document: dict[str, Any] = {
            "model": self.model.to_dict(),
            "threshold": self.threshold,
            "split": self.split,
            "sets": sets,
        }
        if self.suite:
            document["suite"] = self.suite.name
            document["averages"] = [average.to_dict() for average in averages(self.suite, results)]
            document["missing"] = [vars(missing) for missing in self.missing]
        if self.answers:
            document["answers"] = self.answers.to_dict()
        if len(self.thresholds) > 1:
            document["sweep"] = [self._at(threshold) for threshold in self.thresholds]
        return document

    def _at(self, threshold: float | None) -> dict[str, Any]:
        results = [outcome.result(threshold) for outcome in self.outcomes]
        scores = [{"name": result.name, **percent(result.overall)} for result in results]
        mean = sum(result.overall.f1 for result in results) / len(results)
        return {"threshold": threshold, "mean_f1": round(100 * mean, 2), "sets": scores}


def averages(suite: Suite, results: Sequence[SetResult]) -> list[Average]:
    """Returns the averages of a suite's tables. An average without any of its sets is left out."""
    f1 = {result.name: result.overall.f1 for result in results}
    found = []
    for name, members in suite.averages.items():
        here = [f1[member] for member in members if member in f1]
        if here:
            found.append(Average(name, sum(here) / len(here), len(here), len(members)))
    return found
