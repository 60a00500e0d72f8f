"""Spans that may become entities, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spanlake.decoding import Entity, select, to_entities
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText
from spanlake.text import IntArray, whole_characters


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


def join(parts: Sequence[Candidates]) -> Candidates:
    """Returns the candidates of all parts together. There must be at least one part."""
    columns = zip(*((part.text, part.start, part.end, part.label, part.score) for part in parts), strict=True)
    return Candidates(*map(np.concatenate, columns))


def choose(cut: CutText, settings: Settings, found: Candidates) -> list[Entity]:
    """Returns the entities of a text, chosen among the candidates of all its windows and label groups."""
    offsets = whole_characters(cut.text, cut.offsets) if len(found.start) else cut.offsets
    start, end = found.start, found.end
    if offsets is not cut.offsets:  # an entity holds all or none of the words that share a character
        first, last = _joined(offsets)
        start, end = first[start], last[end]
    spans = (start, end, found.label, found.score)
    chosen = select(*spans, nested=settings.nested, multi_label=settings.multi_label)
    return to_entities(cut.text, offsets, settings.names, *(values[chosen] for values in spans))


def _joined(offsets: IntArray) -> tuple[IntArray, IntArray]:
    """Returns, for each word, the first and the last word of its group of overlapping words, [W] each.

    offsets: [W, 2].
    """
    begins = np.concatenate(([True], offsets[1:, 0] >= offsets[:-1, 1]))
    places = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    return places[group], np.append(places[1:], len(offsets))[group] - 1
