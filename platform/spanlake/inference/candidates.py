"""Spans that may become entities, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spanlake.decoding import Entity, join_adjacent, select, to_entities
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText
from spanlake.text import IntArray, whole_characters

if TYPE_CHECKING:
    from spanlake.rules import Rules


@dataclass(frozen=True)
class Candidates:
    """Spans above their thresholds: text index, first and last word (inclusive), label index, score; [n] each."""

    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    score: np.ndarray

    def by_text(self, indexes: Sequence[int]) -> Iterator[Candidates]:
        """Yields the candidates of each text in `indexes`, which must increase."""
        order = np.argsort(self.text, kind="stable")
        begins, ends = (np.searchsorted(self.text[order], indexes, side=side) for side in ("left", "right"))
        for begin, end in zip(begins, ends, strict=True):
            own = order[begin:end]
            yield Candidates(self.text[own], self.start[own], self.end[own], self.label[own], self.score[own])


_NO_INDEX = np.zeros(0, np.int64)
NONE = Candidates(_NO_INDEX, _NO_INDEX, _NO_INDEX, _NO_INDEX, np.zeros(0, np.float32))

_FIRST = 2.0  # as a score, above that of every entity of the model


def join(parts: Sequence[Candidates]) -> Candidates:
    """Returns the candidates of all parts together. There must be at least one part."""
    columns = zip(*((part.text, part.start, part.end, part.label, part.score) for part in parts), strict=True)
    return Candidates(*map(np.concatenate, columns))


def choose(cut: CutText, settings: Settings, found: Candidates) -> list[Entity]:
    """Returns the entities of a text, chosen among the candidates of all its windows and label groups.

    Matches of rules are chosen before the candidates of the model. A text without words has no entities.
    """
    offsets = whole_characters(cut.text, cut.offsets) if len(found.start) else cut.offsets
    start, end = found.start, found.end
    if offsets is not cut.offsets:  # an entity holds all or none of the words that share a character
        first, last = _joined(offsets)
        start, end = first[start], last[end]
    spans = (start, end, found.label, found.score)
    if settings.rules and len(offsets):
        entities = _choose_with_rules(cut.text, settings, settings.rules, offsets, spans)
    else:
        chosen = select(*spans, nested=settings.nested, multi_label=settings.multi_label)
        entities = to_entities(cut.text, offsets, settings.names, *(values[chosen] for values in spans))
    return join_adjacent(cut.text, entities) if settings.join else entities


def _choose_with_rules(
    text: str, settings: Settings, rules: Rules, offsets: IntArray, spans: tuple[np.ndarray, ...]
) -> list[Entity]:
    """Returns the entities of a text, chosen among matches of rules and candidates, as though a match of an earlier
    rule scored higher than that of a later one, and every match higher than every candidate.

    offsets: [W, 2]; spans: first and last word (inclusive), label index and score of the candidates.
    """
    start, end, label, score = spans
    matches, labels = rules.find(text), settings.labels
    starts = np.array([*(match.start for match in matches), *offsets[start, 0].tolist()], np.int64)
    ends = np.array([*(match.end for match in matches), *offsets[end, 1].tolist()], np.int64)
    indexes = [*(labels.index(rules.labels[match.rule]) for match in matches), *label.tolist()]
    scores = [*(_FIRST + len(rules.labels) - match.rule for match in matches), *score.tolist()]
    # Characters take the place of words: only their order matters.
    chosen = select(
        starts,
        ends - 1,
        np.array(indexes, np.int64),
        np.array(scores, np.float64),
        nested=settings.nested,
        multi_label=settings.multi_label,
    )
    entities = []
    for place in chosen.tolist():
        begin, stop, is_rule = int(starts[place]), int(ends[place]), place < len(matches)
        surface, name = text[begin:stop], labels[indexes[place]]
        if not rules.allows(surface):
            source = "rule" if is_rule else "model"
            entities.append(Entity(begin, stop, surface, name, 1.0 if is_rule else scores[place], source))
    return entities


def _joined(offsets: IntArray) -> tuple[IntArray, IntArray]:
    """Returns, for each word, the first and the last word of its group of overlapping words, [W] each.

    offsets: [W, 2].
    """
    begins = np.concatenate(([True], offsets[1:, 0] >= offsets[:-1, 1]))
    places = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    return places[group], np.append(places[1:], len(offsets))[group] - 1
