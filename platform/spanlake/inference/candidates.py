"""Spans that may become entities, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spanlake.decoding import Entity, join_adjacent, select
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


def choose(texts: Sequence[tuple[CutText, Settings]], found: Candidates) -> list[list[Entity]]:
    """Returns the entities of each text, chosen among the candidates of all its windows and label groups.

    Matches of rules are chosen before the candidates of the model. A text without words has no entities.

    found: `text` is the index of a text in `texts`.
    """
    counts = [len(cut.offsets) for cut, _ in texts]
    before = np.cumsum([0, *counts])  # words of earlier texts: a word of all texts has a place of its own
    offsets = np.concatenate([cut.offsets for cut, _ in texts])
    start, end = before[found.text] + found.start, before[found.text] + found.end
    for at in np.unique(found.text).tolist():
        cut = texts[at][0]
        whole = whole_characters(cut.text, cut.offsets)
        if whole is not cut.offsets:  # an entity holds all or none of the words that share a character
            own = found.text == at
            first, last = _joined(whole)
            start[own], end[own] = before[at] + first[found.start[own]], before[at] + last[found.end[own]]
            offsets[before[at] : before[at + 1]] = whole
    placed = replace(found, start=start, end=end)
    entities: list[list[Entity]] = [[] for _ in texts]
    for kept in _selected([settings for _, settings in texts], placed):
        values = found.text, offsets[start, 0], offsets[end, 1], found.label, found.score
        for at, begin, stop, label, score in zip(*(value[kept].tolist() for value in values), strict=True):
            cut, settings = texts[at]
            entities[at].append(Entity(begin, stop, cut.text[begin:stop], settings.names[label], score))
    with_rules = [at for at, (_, settings) in enumerate(texts) if settings.rules and counts[at]]
    for at, part in zip(with_rules, placed.by_text(with_rules), strict=True):
        cut, settings = texts[at]
        assert settings.rules
        spans = part.start, part.end, part.label, part.score
        entities[at] = _choose_with_rules(cut.text, settings, settings.rules, offsets, spans)
    return [
        join_adjacent(cut.text, chosen) if settings.join else chosen
        for (cut, settings), chosen in zip(texts, entities, strict=True)
    ]


def _selected(settings: Sequence[Settings], placed: Candidates) -> Iterator[IntArray]:
    """Yields the indexes of the accepted candidates, those of texts with the same kind of selection together.

    It leaves out texts with rules. settings: of each text. placed: the words of all texts have places of their own.
    """
    kinds = [None if each.rules else (each.nested, each.multi_label) for each in settings]
    for nested, multi_label in {kind for kind in kinds if kind}:
        own = np.flatnonzero(np.array([kind == (nested, multi_label) for kind in kinds])[placed.text])
        spans = (placed.start, placed.end, placed.label, placed.score)
        yield own[select(*(values[own] for values in spans), nested=nested, multi_label=multi_label)]


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
