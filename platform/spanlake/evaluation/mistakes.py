"""What a model got wrong in a text, by kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spanlake.decoding import Entity
from spanlake.evaluation.metrics import Span, span_of

Kind = Literal["missed", "spurious", "wrong type", "wrong boundary"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Mistake:
    kind: Kind
    gold: Span | None  # the mention, if there is one
    found: Entity | None  # the model's entity, if there is one

    @property
    def labels(self) -> set[str]:
        return {*([self.gold[2]] if self.gold else []), *([self.found.label] if self.found else [])}


def mistakes(found: Sequence[Entity], gold: Collection[Span]) -> list[Mistake]:
    """Returns the mistakes in one text, in the text's order.

    An entity with a mention's span and another label has the wrong type. An entity that overlaps a mention of its
    label has the wrong boundary. Every other mention is missed, and every other entity is spurious. Each counts once.
    """
    right = set(map(span_of, found)) & set(gold)
    mentions = sorted(set(gold) - right)
    wrong = [entity for entity in found if span_of(entity) not in right]
    paired: list[Mistake] = []
    for kind, fits in _PAIRINGS:
        for entity in wrong:
            mention = max((m for m in mentions if fits(entity, m)), key=lambda m: _overlap(entity, m), default=None)
            if mention is not None:
                mentions.remove(mention)
                paired.append(Mistake(kind, mention, entity))
        taken = {id(mistake.found) for mistake in paired}
        wrong = [entity for entity in wrong if id(entity) not in taken]
    missed = [Mistake("missed", mention, None) for mention in mentions]
    spurious = [Mistake("spurious", None, entity) for entity in wrong]
    return sorted([*paired, *missed, *spurious], key=_place)


def _same_span(entity: Entity, mention: Span) -> bool:
    return (entity.start, entity.end) == mention[:2]


def _same_label(entity: Entity, mention: Span) -> bool:
    return entity.label == mention[2] and _overlap(entity, mention) > 0


def _overlap(entity: Entity, mention: Span) -> int:
    return min(entity.end, mention[1]) - max(entity.start, mention[0])


def _place(mistake: Mistake) -> tuple[int, int]:
    span = mistake.gold or (mistake.found.start, mistake.found.end, "")  # type: ignore[union-attr] # one is there
    return span[0], span[1]


# A mention or entity is paired only once.
_PAIRINGS: tuple[tuple[Kind, Callable[[Entity, Span], bool]], ...] = (
    ("wrong type", _same_span),
    ("wrong boundary", _same_label),
)
