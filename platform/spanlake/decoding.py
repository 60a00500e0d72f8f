"""Chooses entities, flat or nested, among scored spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

_ROUNDS = 32  # of the choice among many spans at once, before the rest is done one by one


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled piece of a text: text[start:end] in code points, where end is exclusive."""

    start: int
    end: int
    text: str
    label: str
    score: float
    source: str | None = None  # "model" or "rule"; None where no rules were given

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, ready for JSON. `source` is not in it where no rules were given."""
        found = {"start": self.start, "end": self.end, "text": self.text, "label": self.label, "score": self.score}
        return found if self.source is None else found | {"source": self.source}


def select(
    start: NDArray[Any],
    end: NDArray[Any],
    label: NDArray[Any],
    score: NDArray[Any],
    *,
    nested: bool,
    multi_label: bool,
) -> IntArray:
    """Chooses the entities of a text among its candidates, the best score first.

    Several texts can be chosen together if the words of each have numbers of their own.

    start, end: int [n], first and last word (inclusive); label: int [n]; score: float [n], above the threshold.

    A candidate is accepted unless it conflicts with one that was accepted before it. Equal spans conflict, unless
    multi_label is true. Other spans conflict when they overlap; if nested is true, they conflict only when neither
    contains the other. Equal scores are taken by start, then width, then label, so the order of the candidates does not
    matter. The same span with the same label is never accepted twice.

    Returns int64 indexes of the accepted candidates, ordered by start, end, falling score, label.
    Raises ValueError if the arrays differ in length or a span ends before it starts.
    """
    if not len(start) == len(end) == len(label) == len(score):
        raise ValueError(f"candidate arrays differ in length: {len(start)}, {len(end)}, {len(label)}, {len(score)}")
    if np.any(end < start):
        raise ValueError("a candidate ends before it starts")
    if len(start) == 0:
        return np.zeros(0, dtype=np.int64)

    order = np.lexsort((label, end, start, -score))
    # Only the order of positions matters from here on, so memory grows with the candidates, not with the document.
    positions, ranks = np.unique(np.concatenate((start[order], end[order])), return_inverse=True)
    first, last = np.split(ranks, 2)

    # Equal spans conflict with the same other spans, so all of them are accepted or all are refused. The greedy pass
    # therefore sees each span once, at its best score.
    _, best, span = np.unique(first * len(positions) + last, return_index=True, return_inverse=True)
    turns = np.argsort(best)
    winners = turns[_accept(first[best[turns]], last[best[turns]], len(positions), nested=nested)]

    if multi_label:
        labels, label_rank = np.unique(label[order], return_inverse=True)
        _, distinct = np.unique(span * len(labels) + label_rank, return_index=True)
        won = np.zeros(len(best), dtype=np.bool_)
        won[winners] = True
        chosen = order[distinct[won[span[distinct]]]]
    else:
        chosen = order[best[winners]]
    ordered: IntArray = chosen[np.lexsort((label[chosen], -score[chosen], end[chosen], start[chosen]))]
    return ordered


def _accept(first: IntArray, last: IntArray, size: int, *, nested: bool) -> IntArray:
    """Goes through distinct spans in turn, and accepts each that conflicts with no accepted one.

    first, last: [n], positions in 0..size-1, in the order of the turns.

    Each round cuts the spans into groups that overlap no other group, accepts the first of each group, and drops what
    conflicts with it. A long chain of overlapping spans would need many rounds, so after some rounds the rest is done
    one by one.

    Returns the turns of the accepted spans, [n].
    """
    turn = np.lexsort((-last, first))
    first, last = first[turn], last[turn]
    accepted = []
    for _ in range(_ROUNDS):
        if not len(turn):
            break
        begins = np.concatenate(([True], first[1:] > np.maximum.accumulate(last)[:-1]))
        group = np.cumsum(begins) - 1
        best = np.minimum.reduceat(turn, np.flatnonzero(begins))[group]
        is_best = turn == best
        accepted.append(turn[is_best])
        best_first, best_last = first[is_best][group], last[is_best][group]
        kept = (last < best_first) | (first > best_last)
        if nested:
            kept |= (first >= best_first) & (last <= best_last) | (first <= best_first) & (last >= best_last)
            kept &= ~is_best
        turn, first, last = turn[kept], first[kept], last[kept]
    if len(turn):
        order = np.argsort(turn)
        accept = _accept_nested if nested else _accept_flat
        accepted.append(turn[order][accept(first[order].tolist(), last[order].tolist(), size)])
    return np.concatenate(accepted)


def join_adjacent(text: str, entities: Sequence[Entity]) -> list[Entity]:
    """Joins entities of one label that follow each other with at most whitespace between them.

    entities: those of `text`, by start, without overlaps. The score of a joined entity is the lowest of its parts.
    Parts of different sources, such as a rule and the model, stay apart.
    """
    joined: list[Entity] = []
    for entity in entities:
        before = joined[-1] if joined else None
        if (
            before is not None
            and (before.label, before.source) == (entity.label, entity.source)
            and not text[before.end : entity.start].strip()
        ):
            score = min(before.score, entity.score)
            whole = text[before.start : entity.end]
            joined[-1] = Entity(before.start, entity.end, whole, entity.label, score, entity.source)
        else:
            joined.append(entity)
    return joined


def _accept_flat(starts: list[int], ends: list[int], size: int) -> list[int]:
    """Goes through distinct spans over positions 0..size-1 in turn, and accepts each that overlaps no accepted one.

    Returns the turns of the accepted spans.
    """
    occupied = bytearray(size)
    taken = []
    for turn, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if occupied.find(1, start, end + 1) < 0:
            occupied[start : end + 1] = b"\1" * (end + 1 - start)
            taken.append(turn)
    return taken


def _accept_nested(starts: list[int], ends: list[int], size: int) -> list[int]:
    """Goes through distinct spans over positions 0..size-1 in turn, and accepts each that crosses no accepted one.

    Returns the turns of the accepted spans.
    """
    rightward, leftward = _Reach(size), _Reach(size)  # the second holds the mirror image of every span
    mirror = size - 1
    taken = []
    for turn, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if not rightward.leaves(start, end) and not leftward.leaves(mirror - end, mirror - start):
            rightward.add(start, end)
            leftward.add(mirror - end, mirror - start)
            taken.append(turn)
    return taken


class _Reach:
    """The furthest end of the spans that start at each position, in a segment tree of maxima.

    A query takes time in the logarithm of the span's width, so narrow spans are cheap in any document.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.tree = [-1] * (2 * size)

    def add(self, start: int, end: int) -> None:
        node = start + self.size
        while node and self.tree[node] < end:
            self.tree[node] = end
            node //= 2

    def leaves(self, start: int, end: int) -> bool:
        """Returns whether any span that starts in start+1..end ends after `end`."""
        tree = self.tree
        low, high = start + 1 + self.size, end + 1 + self.size
        while low < high:
            if low & 1:
                if tree[low] > end:
                    return True
                low += 1
            if high & 1:
                high -= 1
                if tree[high] > end:
                    return True
            low //= 2
            high //= 2
        return False
