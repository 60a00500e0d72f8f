"""Fits a calibration to what a model found in annotated texts: a scale for its scores, and a threshold for each label.

The gain is measured by fitting to half of the texts and counting on the other half, and the other way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spanlake.calibration import DEFAULT_THRESHOLD, Calibration
from spanlake.errors import UserError
from spanlake.evaluation.metrics import Score, span_of
from spanlake.evaluation.scores import Outcome

FOUND_ABOVE = 0.02  # the lowest score of entities that a calibration is fitted to
_GRID = np.arange(0.03, 0.98, 0.01)  # thresholds that are tried, of uncalibrated scores
_MENTIONS = 20  # a label with fewer gets no threshold of its own
_ROUNDS = 100
_PRECISION = 1e-9
_LEAST_SCALE = 0.05
_BINS = 10


@dataclass(frozen=True)
class Scored:
    """All entities that were found: [n] each."""

    half: np.ndarray  # of the texts: 0 or 1
    label: np.ndarray  # str
    score: np.ndarray
    right: np.ndarray  # bool
    gold: tuple[Counter[str], Counter[str]]  # mentions of each label, in each half

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Scored:
        """Raises `UserError` if all entities are right or all are wrong, because nothing can be fitted to them."""
        rows: list[tuple[int, str, float, bool]] = []
        gold = (Counter[str](), Counter[str]())
        for outcome in outcomes:
            for number, (entities, there) in enumerate(zip(outcome.found, outcome.benchmark.gold, strict=True)):
                half = number % 2
                gold[half].update(label for *_, label in there)
                rows += [(half, e.label, e.score, span_of(e) in there) for e in entities]
        right = np.array([row[3] for row in rows], dtype=bool)
        if not right.any() or right.all():
            raise UserError(
                f"Of the {len(rows)} entities that the model finds in this data, {int(right.sum())} are right; a "
                "calibration needs right ones and wrong ones, so give data with labels that the model knows."
            )
        halves, labels, scores = (np.array([row[column] for row in rows]) for column in range(3))
        return cls(halves, labels, scores, right, gold)

    def part(self, half: int) -> Scored:
        chosen = self.half == half
        empty = Counter[str]()
        gold = (self.gold[0], empty) if half == 0 else (empty, self.gold[1])
        return Scored(self.half[chosen], self.label[chosen], self.score[chosen], self.right[chosen], gold)

    @property
    def mentions(self) -> Counter[str]:
        return self.gold[0] + self.gold[1]

    def counted(self, calibration: Calibration) -> dict[str, Score]:
        """Returns the scores under a calibration."""
        score = calibrated(self.score, calibration)
        limits = {label: calibration.threshold_of(label) for label in {*self.label.tolist(), *self.mentions}}
        taken = score > np.array([limits[label] for label in self.label.tolist()])
        predicted = Counter(self.label[taken].tolist())
        correct = Counter(self.label[taken & self.right].tolist())
        return {label: Score(correct[label], predicted[label], self.mentions[label]) for label in sorted(limits)}


@dataclass(frozen=True)
class Gain:
    """What a calibration gains on texts that it was not fitted to."""

    before: dict[str, Score]
    after: dict[str, Score]
    error_before: float  # mean distance of a score from the share of entities that are right, 0 to 1
    error_after: float


def fit(scored: Scored) -> Calibration:
    scale, shift = _fit_scores(_logit(scored.score), scored.right)
    common = _common_threshold(scored)
    own = _own_thresholds(scored, common)
    as_calibrated = Calibration(scale, shift)
    return Calibration(
        scale,
        shift,
        _rounded(common, as_calibrated),
        {label: _rounded(threshold, as_calibrated) for label, threshold in own.items()},
    )


def gain(scored: Scored) -> Gain:
    """Returns the gain. Fits to each half and counts on the other."""
    before: dict[str, Score] = {}
    after: dict[str, Score] = {}
    score, right = [], []
    for half in (0, 1):
        fitted, held_out = fit(scored.part(1 - half)), scored.part(half)
        before = _added(before, held_out.counted(Calibration()))
        after = _added(after, held_out.counted(fitted))
        score.append(calibrated(held_out.score, fitted))
        right.append(held_out.right)
    return Gain(before, after, _error(scored.score, scored.right), _error(np.concatenate(score), np.concatenate(right)))


def micro(scores: Mapping[str, Score]) -> Score:
    """Returns the score of all labels' mentions together."""
    values = scores.values()
    return Score(sum(s.correct for s in values), sum(s.predicted for s in values), sum(s.gold for s in values))


def calibrated(score: np.ndarray, calibration: Calibration) -> np.ndarray:
    return _sigmoid(calibration.scale * _logit(score) + calibration.shift)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(-np.logaddexp(0, -value))
    return found


def _added(one: Mapping[str, Score], other: Mapping[str, Score]) -> dict[str, Score]:
    return {
        label: micro({str(i): each[label] for i, each in enumerate((one, other)) if label in each})
        for label in sorted({*one, *other})
    }


def _logit(score: np.ndarray) -> np.ndarray:
    kept = np.clip(score, 1e-7, 1 - 1e-7)
    found: np.ndarray = np.log(kept / (1 - kept))
    return found


def _rounded(threshold: float, calibration: Calibration) -> float:
    """Returns the threshold of calibrated scores that equals one of raw scores."""
    return round(float(calibrated(np.array([threshold]), calibration)[0]), 4)


def _fit_scores(logit: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Returns scale and shift by Platt's method: logistic regression, with targets a little above 0 and below 1."""
    positives = int(right.sum())
    targets = np.where(right, (positives + 1) / (positives + 2), 1 / (len(right) - positives + 2))
    features = np.stack([logit, np.ones_like(logit)], axis=1)

    def loss(weights: np.ndarray) -> float:
        value = features @ weights
        return float((np.logaddexp(0, value) - targets * value).sum())

    share = targets.mean()
    weights = np.array([0.0, np.log(share / (1 - share))])
    for _ in range(_ROUNDS):
        predicted = _sigmoid(features @ weights)
        slope = features.T @ (predicted - targets)
        curvature = (features * (predicted * (1 - predicted))[:, None]).T @ features + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > _PRECISION:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() <= _PRECISION:
            break
    scale, shift = weights.tolist()
    # Scores that do not tell right from wrong stay as they are.
    return (scale, shift) if scale >= _LEAST_SCALE else (1.0, 0.0)


def _common_threshold(scored: Scored) -> float:
    predicted, correct = _counts(scored.score, scored.right)
    f1 = 2 * correct / (predicted + max(1, sum(scored.mentions.values())))
    return _best(f1)


def _own_thresholds(scored: Scored, common: float) -> dict[str, float]:
    """Returns the thresholds of frequent labels that give the best F1 of all labels together.

    F1 is 2 * correct / (predicted + gold). If F is the best F1, each label's threshold maximises 2 * correct - F *
    predicted. So F is raised until nothing changes (Dinkelbach's method).
    """
    frequent = [label for label, count in scored.mentions.items() if count >= _MENTIONS]
    mine = {label: scored.label == label for label in frequent}
    counts = {label: _counts(scored.score[mine[label]], scored.right[mine[label]]) for label in frequent}
    others = ~np.isin(scored.label, frequent) & (scored.score > common)
    gold = sum(scored.mentions.values())
    value, chosen = 0.0, dict.fromkeys(frequent, common)
    for _ in range(_ROUNDS):
        chosen = {label: _best(2 * right - value * found) for label, (found, right) in counts.items()}
        at = {label: int(np.abs(threshold - _GRID).argmin()) for label, threshold in chosen.items()}
        predicted = int(others.sum()) + sum(int(counts[label][0][i]) for label, i in at.items())
        correct = int((others & scored.right).sum()) + sum(int(counts[label][1][i]) for label, i in at.items())
        better = 2 * correct / max(1, predicted + gold)
        if better <= value:
            break
        value = better
    return chosen


def _counts(score: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many entities are predicted, and how many of them are right, at each threshold of the grid."""
    everything, correct = np.sort(score), np.sort(score[right])
    predicted = len(everything) - np.searchsorted(everything, _GRID, side="right")
    return predicted, len(correct) - np.searchsorted(correct, _GRID, side="right")


def _best(values: np.ndarray) -> float:
    """Returns the threshold with the greatest value; among equal values, the threshold nearest to the usual one."""
    best = np.flatnonzero(values >= values.max() - 1e-12)
    return float(_GRID[best[np.abs(_GRID[best] - DEFAULT_THRESHOLD).argmin()]])


def _error(score: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error, over bins of equal width."""
    bins = np.minimum((score * _BINS).astype(int), _BINS - 1)
    distances = [abs(float((score[bins == b] - right[bins == b]).sum())) for b in range(_BINS)]
    return sum(distances) / max(1, len(score))
