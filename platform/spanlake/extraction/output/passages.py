"""Passages with their entities, cropped and marked for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

_Entities: TypeAlias = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Passage:
    text: str
    entities: _Entities  # with `start` and `end` in this text

    def cropped(self, length: int, margin: int, label: str | None = None) -> Passage:
        """Returns about `length` characters of a longer text, and the entities inside them.

        The crop begins between two words, at most `2 * margin` characters before the first entity (of `label`, if
        given).
        """
        if len(self.text) <= length:
            return self
        first = min(entity["start"] for entity in self.entities if label in (None, entity["label"]))
        start = _word_start(self.text, max(0, first - margin), margin)
        stop = _word_start(self.text, min(len(self.text), start + length), margin)
        before, after = "… " if start else "", "…" if stop < len(self.text) else ""
        shift = len(before) - start
        inside = [entity for entity in self.entities if start <= entity["start"] and entity["end"] <= stop]
        shifted = [entity | {"start": entity["start"] + shift, "end": entity["end"] + shift} for entity in inside]
        return Passage(before + self.text[start:stop] + after, shifted)

    def pieces(self) -> list[Piece]:
        """Returns the whole text as plain pieces and marked entities. A mark contains the marks inside it.

        Where entities overlap in part, only the longest is marked.
        """
        chosen: list[dict[str, Any]] = []
        for entity in sorted(self.entities, key=lambda entity: (entity["start"] - entity["end"], entity["start"])):
            if not any(_cross(entity, other) for other in chosen):
                chosen.append(entity)
        chosen.sort(key=lambda entity: (entity["start"], -entity["end"]))
        return _pieces(self.text, 0, len(self.text), chosen)


def passages_of(texts: Mapping[str, pa.Scalar], entities: pa.Scalar) -> list[Passage]:
    """Returns the passages of one row: for each text column, its text with the entities in it, if it has any."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entity in entities.as_py() or ():
        found.setdefault(entity.get("column", next(iter(texts))), []).append(entity)
    return [Passage(texts[column].as_py(), own) for column, own in found.items()]


@dataclass(frozen=True)
class Mark:
    entity: dict[str, Any]
    pieces: list[Piece]


Piece: TypeAlias = "str | Mark"


def _pieces(text: str, start: int, stop: int, entities: _Entities) -> list[Piece]:
    """Returns the pieces of `text[start:stop]`. `entities` are inside it; outer ones come before inner ones."""
    found: list[Piece] = []
    left = list(entities)
    while left:
        outer = left.pop(0)
        inner = [entity for entity in left if entity["end"] <= outer["end"]]
        left = left[len(inner) :]
        found += [text[start : outer["start"]], Mark(outer, _pieces(text, outer["start"], outer["end"], inner))]
        start = outer["end"]
    return [*found, text[start:stop]]


def _cross(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether the entities overlap in part: neither is inside the other."""
    first, second = sorted((one, other), key=lambda entity: (entity["start"], -entity["end"]))
    return bool(second["start"] < first["end"] < second["end"])


def _word_start(text: str, position: int, margin: int) -> int:
    """Returns the start of a word at most `margin` before a position; the position itself if no word starts there."""
    if position in (0, len(text)):
        return position
    space = text.rfind(" ", max(0, position - margin), position)
    return position if space < 0 else space + 1
