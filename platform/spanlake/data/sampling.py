"""Which types a training text is asked for (Zaratiana et al. 2023, sections 3.2 and 5.3), and by which names.

A text's own types are positive. Negative are, as in the paper, types of the other texts of its batch; or, by the
recipe, only those that its annotators are known to have looked for in vain: the ones that the text states, or the other
types of its data set.

A mention may have several types, from specific to broad. Of those that a prompt asks for, the most specific is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Types = tuple[str, ...]  # of a mention, from specific to broad


class Sampling(BaseModel):
    """How types are chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_types: int = Field(default=25, ge=1, description="in one prompt")
    negatives: Literal["batch", "own"] = Field(
        default="batch", description="types of the batch's other texts, or those known to be absent"
    )
    negative_ratio: float = Field(
        default=0.5, ge=0, le=0.95, description="of the types asked for, with negatives from the batch"
    )
    max_negatives: int = Field(
        default=12,
        ge=0,
        description="own negatives are from 0 to this many; a text without mentions has from 1 to this many",
    )
    drop_types: bool = Field(default=True, description="of the types chosen, ask for a random number, at least one")
    frequency_power: float = Field(
        default=0.0,
        ge=-10,
        le=10,
        description="negatives are drawn in proportion to this power of how often they occur; 0: evenly",
    )
    description_rate: float = Field(
        default=0.0, ge=0, le=1, description="types that go by their description, where they have one"
    )
    broader_rate: float = Field(
        default=0.0, ge=0, le=1, description="texts whose types are replaced by ones broader by one or two steps"
    )
    above_rate: float = Field(
        default=0.0, ge=0, le=1, description="types broader than those asked for that become negatives"
    )
    synonym_rate: float = Field(default=0.0, ge=0, le=1, description="types that go by one of their synonyms")
    descriptions: Mapping[str, str] = {}
    broader: Mapping[str, str] = Field(default={}, description="type -> the wider type it is a kind of")
    synonyms: Mapping[str, Sequence[str]] = {}
    sentence_rate: float = Field(default=0.0, ge=0, le=1, description="passages of which one sentence is taken")
    levels: bool = Field(
        default=False,
        description="draw a set of each text's types, by which its mentions go; then `negatives`, `negative_ratio`, "
        "`drop_types` and `broader` do nothing, and `max_negatives` counts types of other texts",
    )
    specific_rate: float = Field(
        default=0.3, ge=0, le=1, description="with levels: texts of which each mention's most specific type is drawn"
    )
    broadest_rate: float = Field(
        default=0.2, ge=0, le=1, description="with levels: texts of which each mention's broadest type is drawn"
    )
    least_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="with levels: of other texts a random share of the types, from this to 1",
    )
    max_positives: int = Field(
        default=18, ge=1, description="with levels: of more types, a random number is kept, above half of this"
    )
    absent_rate: float = Field(
        default=0.6, ge=0, le=1, description="with levels: types stated as absent that become negatives"
    )
    elsewhere_rate: float = Field(
        default=0.3, ge=0, le=1, description="with levels: types of the rest of a passage that become negatives"
    )

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.specific_rate + self.broadest_rate > 1:
            raise ValueError(
                f"sampling.specific_rate ({self.specific_rate:g}) and sampling.broadest_rate ({self.broadest_rate:g}) "
                "are shares of the same texts; their sum must be at most 1."
            )
        return self


@dataclass(frozen=True)
class SetTypes:
    """The types of one data set, and how its texts are asked for them."""

    sampling: Sampling
    counts: Mapping[str, int] = field(default_factory=dict)  # how often each type is mentioned

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.counts))

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """Of the types' weights, up to each."""
        counts = np.maximum([self.counts[name] for name in self.names], 1)
        return np.cumsum(counts**self.sampling.frequency_power)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Types by `frequency_power` of how often they are mentioned; the same one may come again."""
        if not self.names:
            return []
        places = np.searchsorted(self._sums, rng.random(count) * self._sums[-1], side="right")
        return [self.names[i] for i in np.minimum(places, len(self.names) - 1).tolist()]


def sample_types(
    own: Sequence[Types],
    candidates: Sequence[str],
    sampling: Sampling,
    rng: np.random.Generator,
    frequencies: Mapping[str, int] | None = None,
) -> tuple[list[str], dict[Types, int]]:
    """The prompt for one text, in random order, and for the types of each of its mentions their place in the prompt.

    `own` are the types of the text's mentions, which go by the most specific. Negatives are drawn from `candidates`;
    `frequencies` says how often types occur (once, if not said). A type may be asked for by a broader one, in which
    case nothing narrower on that path is asked for. Beside a type, what is broader than it is a negative. Own types
    that are not asked for are in neither result.
    """
    own = sorted(set(own))
    levels = int(rng.integers(1, 3)) if rng.random() < sampling.broader_rate else 0
    paths = {types: _upwards(types, sampling.broader) for types in own}
    asked = {types: path[min(levels, len(path) - 1)] for types, path in paths.items()}
    positives = sorted(set(asked.values()))
    positives = [positives[i] for i in rng.permutation(len(positives))]
    true = {step for types, path in paths.items() for step in path[: path.index(asked[types]) + 1]}
    above = {step for path in paths.values() for step in path} - true
    kept, count = _counts(len(positives), sampling, rng)
    chosen = _draw(sorted({*candidates} - true - above), count, sampling.frequency_power, frequencies or {}, rng)
    chosen += [label for label in sorted(above) if rng.random() < sampling.above_rate]
    labels = positives[:kept] + chosen[: sampling.max_types - min(kept, len(positives))]
    labels = [labels[i] for i in rng.permutation(len(labels))]
    if sampling.drop_types and labels:
        labels = labels[: int(rng.integers(1, len(labels) + 1))]
    places = {types: labels.index(name) for types, name in asked.items() if name in labels}
    return _renamed(labels, sampling, rng), places


def sample_levels(
    own: Sequence[Types], absent: Sequence[str], elsewhere: Sequence[str], source: SetTypes, rng: np.random.Generator
) -> tuple[list[str], dict[Types, int]]:
    """The same for a text whose mentions have types in levels.

    A set of the text's types is drawn, and each mention goes by the most specific of its types that is in the set; one
    without any is not asked for. Negatives are types that were drawn but go to no mention, types that the text states
    as `absent`, types named `elsewhere` in the passage that the text is a part of, and types of other texts of the data
    set that share no word with those of this passage: they may be true of a mention here by another name.
    """
    sampling = source.sampling
    own = sorted(set(own))
    drawn = _drawn(own, sampling, rng)
    asked = _most_specific(own, drawn)
    positives = sorted(set(asked.values()))
    if len(positives) > sampling.max_positives:
        kept = int(rng.integers(sampling.max_positives // 2 + 1, sampling.max_positives + 1))
        drawn -= {positives[i] for i in rng.permutation(len(positives))[kept:]}
        asked = _most_specific(own, drawn)
        positives = sorted(set(asked.values()))
    mentioned = {label for types in own for label in types}
    chosen = [*positives, *_some(sorted(drawn - {*positives}), sampling.above_rate, rng)]
    chosen += _some([label for label in absent if label not in mentioned], sampling.absent_rate, rng)
    chosen += _some([label for label in elsewhere if label not in mentioned], sampling.elsewhere_rate, rng)
    least = 0 if chosen else 1
    count = int(rng.integers(least, max(least, sampling.max_negatives) + 1))
    chosen += _unlike({*mentioned, *elsewhere}, count, source, rng)
    labels = list(dict.fromkeys(chosen))[: sampling.max_types]
    labels = [labels[i] for i in rng.permutation(len(labels))]
    places = {types: labels.index(name) for types, name in asked.items() if name in labels}
    return _renamed(labels, sampling, rng), places


def _drawn(own: Sequence[Types], sampling: Sampling, rng: np.random.Generator) -> set[str]:
    """Some of the types, and at least one where there is one."""
    which = rng.random()
    if which < sampling.specific_rate:
        return {types[0] for types in own}
    if which < sampling.specific_rate + sampling.broadest_rate:
        return {types[-1] for types in own}
    labels = sorted({label for types in own for label in types})
    drawn = _some(labels, rng.uniform(sampling.least_share, 1.0), rng)
    return {*drawn} or {labels[i] for i in rng.permutation(len(labels))[:1]}


def _most_specific(own: Sequence[Types], drawn: set[str]) -> dict[Types, str]:
    """For the types of each mention the first that is drawn, where one is."""
    found = {types: next((label for label in types if label in drawn), None) for types in own}
    return {types: label for types, label in found.items() if label is not None}


def _some(labels: Sequence[str], rate: float, rng: np.random.Generator) -> list[str]:
    return [label for label in labels if rng.random() < rate]


def _unlike(known: set[str], count: int, source: SetTypes, rng: np.random.Generator) -> list[str]:
    """At most `count` types of the data set, none of which shares a word with those that are known."""
    words = {word for label in known for word in _words(label)}
    drawn = source.draw(2 * count, rng)  # some share a word, or come again
    return list(dict.fromkeys(label for label in drawn if not words & _words(label)))[:count]


def _words(label: str) -> set[str]:
    """Without what tells a plural."""
    return {word.rstrip("s") for word in label.casefold().split()}


def _counts(positives: int, sampling: Sampling, rng: np.random.Generator) -> tuple[int, int]:
    """How many positive and how many negative types are asked for, at most."""
    if sampling.negatives == "own" or not positives:
        negatives = int(rng.integers(0 if positives else 1, max(1, sampling.max_negatives) + 1))
        return sampling.max_types, min(negatives, sampling.max_types)
    ratio = sampling.negative_ratio
    kept = min(positives, max(1, round(sampling.max_types * (1 - ratio))))
    return kept, min(round(kept * ratio / (1 - ratio)), sampling.max_types - kept)


def _draw(
    labels: list[str], count: int, power: float, frequencies: Mapping[str, int], rng: np.random.Generator
) -> list[str]:
    """`count` of the labels, or all, none twice."""
    if not power:
        return [labels[i] for i in rng.permutation(len(labels))[:count]]
    # Gumbel's trick: the greatest of weight plus noise are a draw without replacement in proportion to the weights.
    keys = power * np.log([max(frequencies.get(label, 1), 1) for label in labels]) + rng.gumbel(size=len(labels))
    return [labels[i] for i in np.argsort(-keys, kind="stable")[:count]]


def _upwards(types: Types, broader: Mapping[str, str]) -> list[str]:
    """The types, the one broader than the broadest of them, and so on."""
    path = list(types)
    while path[-1] in broader and broader[path[-1]] not in path:
        path.append(broader[path[-1]])
    return path


def _renamed(labels: list[str], sampling: Sampling, rng: np.random.Generator) -> list[str]:
    names = list(labels)
    for i, label in enumerate(labels):
        described = sampling.descriptions.get(label, label)
        others = [name for name in sampling.synonyms.get(label, ()) if name not in names]
        if described not in names and rng.random() < sampling.description_rate:
            names[i] = described
        elif others and rng.random() < sampling.synonym_rate:
            names[i] = others[int(rng.integers(len(others)))]
    return names
