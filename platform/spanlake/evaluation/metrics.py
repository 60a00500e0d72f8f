"""Exact-match precision, recall and F1 (Zaratiana et al. 2023, section 4).

A mention is found if an entity has its start, end and label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from spanlake.decoding import Entity

Span = tuple[int, int, str]  # start, end (exclusive), label


def span_of(entity: Entity) -> Span:
    return entity.start, entity.end, entity.label


@dataclass(frozen=True)
class Score:
    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        total = self.predicted + self.gold
        return 2 * self.correct / total if total else 0.0


@dataclass
class Tally:
    """Counts over texts, in all and by label."""

    correct: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    gold: Counter[str] = field(default_factory=Counter)

    def add(self, predicted: Iterable[Span], gold: Iterable[Span]) -> None:
        """Counts one text. A span that is given twice counts once."""
        found, true = set(predicted), set(gold)
        self.predicted.update(label for *_, label in found)
        self.gold.update(label for *_, label in true)
        self.correct.update(label for *_, label in found & true)

    def overall(self) -> Score:
        """Returns the micro average: all labels' mentions together."""
        return Score(self.correct.total(), self.predicted.total(), self.gold.total())

    def by_label(self) -> dict[str, Score]:
        labels = sorted({*self.predicted, *self.gold})
        return {label: Score(self.correct[label], self.predicted[label], self.gold[label]) for label in labels}
