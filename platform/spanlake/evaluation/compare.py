"""Two models on the same sets: the difference in F1, and how sure it is (a paired bootstrap over texts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spanlake.evaluation.metrics import span_of
from spanlake.evaluation.scores import Outcome

_RESAMPLES = 2_000
_INTERVAL = (2.5, 97.5)  # per cent: 95 of a hundred such intervals hold the true difference
_SEED = 0


@dataclass(frozen=True)
class Difference:
    """F1 is from 0 to 1. The difference is the first model's F1 minus the second's."""

    name: str
    f1: float
    against: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.f1 - self.against

    def sentence(self) -> str:
        return (
            f"F1 {100 * self.f1:.1f} against {100 * self.against:.1f}, {100 * self.difference:+.1f} "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"
        )

    def to_dict(self) -> dict[str, Any]:
        values = {"f1": self.f1, "against": self.against, "difference": self.difference}
        return {
            "name": self.name,
            **{key: round(100 * value, 2) for key, value in values.items()},
            "interval": [round(100 * self.low, 2), round(100 * self.high, 2)],
        }


def compare(
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    thresholds: tuple[float | None, float | None],
    resamples: int = _RESAMPLES,
) -> list[Difference]:
    """Returns the difference on each set and, if there are several, on their mean. Texts are drawn within each set."""
    found = []
    drawn = np.zeros((2, resamples))
    for one, other in zip(first, second, strict=True):
        counts = [_counts(outcome, at) for outcome, at in zip((one, other), thresholds, strict=True)]
        resampled = _resampled_f1(counts, resamples)
        drawn += resampled
        found.append(_difference(one.benchmark.name, [_f1(count.sum(axis=0)) for count in counts], resampled))
    if len(found) > 1:
        means = [sum(each.f1 for each in found) / len(found), sum(each.against for each in found) / len(found)]
        found.append(_difference("mean", means, drawn / len(found)))
    return found


def _difference(name: str, f1: Sequence[float], resampled: np.ndarray) -> Difference:
    low, high = np.percentile(resampled[0] - resampled[1], _INTERVAL)
    return Difference(name, float(f1[0]), float(f1[1]), float(low), float(high))


def _counts(outcome: Outcome, threshold: float | None) -> np.ndarray:
    """Returns [texts, 3]: correct, predicted and gold of each text."""
    rows = []
    for entities, gold in zip(outcome.above(threshold), outcome.benchmark.gold, strict=True):
        spans = set(map(span_of, entities))
        rows.append((len(spans & gold), len(spans), len(gold)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _f1(counts: np.ndarray) -> Any:
    """Of [..., 3] counts."""
    total = counts[..., 1] + counts[..., 2]
    return 2 * counts[..., 0] / np.where(total > 0, total, 1)


def _resampled_f1(counts: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """Returns [2, resamples]: the F1 of both models on the same draws of texts."""
    texts = len(counts[0])
    rng = np.random.default_rng(_SEED)
    sums = np.empty((2, resamples, 3))
    for i in range(resamples):
        times = np.bincount(rng.integers(texts, size=texts), minlength=texts)
        sums[:, i] = [times @ count for count in counts]
    f1: np.ndarray = _f1(sums)
    return f1
