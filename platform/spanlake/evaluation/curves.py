"""Precision and recall at every threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spanlake.evaluation.metrics import span_of
from spanlake.evaluation.scores import Outcome

_POINTS = 200  # of a curve, at most


@dataclass(frozen=True)
class Curve:
    """The points of a curve by rising recall: [n] each."""

    threshold: np.ndarray  # entities that score at least this count
    precision: np.ndarray
    recall: np.ndarray

    @property
    def best(self) -> tuple[float, float]:
        """Returns the threshold of the best F1, and that F1. Both are 0 if nothing was found."""
        if not len(self.threshold):
            return 0.0, 0.0
        total = self.precision + self.recall
        f1 = 2 * self.precision * self.recall / np.where(total > 0, total, 1)
        return float(self.threshold[f1.argmax()]), float(f1.max())

    def points(self) -> list[tuple[float, float, float]]:
        """Returns threshold, precision and recall of some points, with the last one."""
        chosen = np.unique(np.linspace(0, len(self.threshold) - 1, min(_POINTS, len(self.threshold))).astype(int))
        columns = (self.threshold[chosen], self.precision[chosen], self.recall[chosen])
        return [(float(t), float(p), float(r)) for t, p, r in zip(*columns, strict=True)]


def curve(outcome: Outcome) -> Curve:
    """Returns the curve of everything that was found, down to the threshold of the search."""
    scored = [
        (entity.score, span_of(entity) in gold)
        for entities, gold in zip(outcome.found, outcome.benchmark.gold, strict=True)
        for entity in entities
    ]
    gold_count = sum(map(len, outcome.benchmark.gold))
    score = np.array([score for score, _ in scored], dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    correct = np.cumsum(np.array([right for _, right in scored], dtype=np.int64)[order])
    score = score[order]
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # of entities that score the same
    predicted = np.arange(1, len(score) + 1)
    return Curve(score[last], (correct / predicted)[last], correct[last] / gold_count)
