"""Samples the types in the prompt of a training text, and their names (Zaratiana et al. 2023, sections 3.2 and 5.3).

A text's own types are positives. Negatives are types of the other texts in its batch, as in the paper. A recipe may
instead choose only types that annotators looked for and did not find: those that the text states as absent, or the
other types of its data set.

A mention may have several types, from specific to broad. Its label is the most specific type that the prompt has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Types = tuple[str, ...]  # of a mention, from specific to broad


class Sampling(BaseModel):
    """The settings of sampling."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_types: int = Field(default=25, ge=1, description="in one prompt")
    negatives: Literal["batch", "own"] = Field(
        default="batch", description="types of the other texts in the batch, or types known to be absent"
    )
    negative_ratio: float = Field(
        default=0.5, ge=0, le=0.95, description="share of negatives in a prompt, with negatives from the batch"
    )
    max_negatives: int = Field(
        default=12,
        ge=0,
        description="number of own negatives: from 0 to this, or from 1 to this for a text without mentions",
    )
    drop_types: bool = Field(default=True, description="keep a random number of the chosen types, at least one")
    frequency_power: float = Field(
        default=0.0,
        ge=-10,
        le=10,
        description="draw negatives in proportion to their frequency to this power; 0 draws evenly",
    )
    description_rate: Share = Field(
        default=0.0, description="share of types that are replaced by their description, if they have one"
    )
    broader_rate: Share = Field(
        default=0.0,
        description="share of texts whose types are replaced by types broader by one or two steps",
    )
    above_rate: Share = Field(
        default=0.0, description="share of types broader than those in the prompt that become negatives"
    )
    synonym_rate: Share = Field(default=0.0, description="share of types that are replaced by a synonym")
    descriptions: Mapping[str, str] = {}
    broader: Mapping[str, str] = Field(default={}, description="type -> the next broader type")
    synonyms: Mapping[str, Sequence[str]] = {}
    sentence_rate: Share = Field(default=0.0, description="share of passages that are cut to one sentence")
    levels: bool = Field(
        default=False,
        description="draw a set of each text's types and label mentions with types of the set; `negatives`, "
        "`negative_ratio`, `drop_types` and `broader` then have no effect, and `max_negatives` counts types of other "
        "texts",
    )
    specific_rate: Share = Field(
        default=0.3,
        description="with levels: share of texts that draw the most specific type of each mention",
    )
    broadest_rate: Share = Field(
        default=0.2, description="with levels: share of texts that draw the broadest type of each mention"
    )
    least_share: Share = Field(
        default=0.25,
        description="with levels: other texts draw a random share of their types, from this to 1",
    )
    max_positives: int = Field(
        default=18,
        ge=1,
        description="with levels: the most labels; if there are more, keep a random number above half of this",
    )
    absent_rate: Share = Field(
        default=0.6, description="with levels: share of types stated as absent that become negatives"
    )
    elsewhere_rate: Share = Field(
        default=0.3,
        description="with levels: share of types in the rest of a passage that become negatives",
    )

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.specific_rate + self.broadest_rate > 1:
            raise ValueError(
                f"sampling.specific_rate ({self.specific_rate:g}) and sampling.broadest_rate ({self.broadest_rate:g}) "
                "are shares of the same texts: choose shares whose sum is at most 1."
            )
        return self


@dataclass(frozen=True)
class SetTypes:
    """The types of one data set, and its settings of sampling."""

    sampling: Sampling
    counts: Mapping[str, int] = field(default_factory=dict)  # number of mentions of each type

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.counts))

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """Returns the cumulative sums of the types' weights."""
        counts = np.maximum([self.counts[name] for name in self.names], 1)
        return np.cumsum(counts**self.sampling.frequency_power)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Returns `count` types, drawn by their frequency to `frequency_power`. A type may be drawn twice."""
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
    """Returns the prompt of one text in random order, and for the types of each mention their place in the prompt.

    `own` are the types of the text's mentions; the label of a mention is its most specific type. Negatives are drawn
    from `candidates`. `frequencies` says how often types occur; a type that it lacks counts as 1. A label may be
    replaced by a broader type; the prompt then has no narrower type of that path. A type that is broader than a label
    is a negative. Own types that are not in the prompt are in neither result.
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
    """Returns the same as `sample_types` for a text whose mentions have types in levels.

    It draws a set of the text's types. The label of a mention is the most specific of its types in the set; a mention
    without a type in the set has no label. Negatives are drawn types that are not a label, types that the text states
    as `absent`, types that occur `elsewhere` in the passage, and types of other texts in the data set. Of the last, a
    type that shares a word with a type of the passage is left out, because it may be another name for that type.
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
    """Returns some of the types: at least one if there are any."""
    which = rng.random()
    if which < sampling.specific_rate:
        return {types[0] for types in own}
    if which < sampling.specific_rate + sampling.broadest_rate:
        return {types[-1] for types in own}
    labels = sorted({label for types in own for label in types})
    drawn = _some(labels, rng.uniform(sampling.least_share, 1.0), rng)
    return {*drawn} or {labels[i] for i in rng.permutation(len(labels))[:1]}


def _most_specific(own: Sequence[Types], drawn: set[str]) -> dict[Types, str]:
    """Returns for the types of each mention the first that was drawn. A mention without one is left out."""
    found = {types: next((label for label in types if label in drawn), None) for types in own}
    return {types: label for types, label in found.items() if label is not None}


def _some(labels: Sequence[str], rate: float, rng: np.random.Generator) -> list[str]:
    return [label for label in labels if rng.random() < rate]


def _unlike(known: set[str], count: int, source: SetTypes, rng: np.random.Generator) -> list[str]:
    """Returns at most `count` types of the data set that share no word with the known types."""
    words = {word for label in known for word in _words(label)}
    drawn = source.draw(2 * count, rng)  # some share a word, or are drawn twice
    return list(dict.fromkeys(label for label in drawn if not words & _words(label)))[:count]


def _words(label: str) -> set[str]:
    """Returns the words of a label, without a plural s."""
    return {word.rstrip("s") for word in label.casefold().split()}


def _counts(positives: int, sampling: Sampling, rng: np.random.Generator) -> tuple[int, int]:
    """Returns the greatest numbers of positive and negative types in the prompt."""
    if sampling.negatives == "own" or not positives:
        negatives = int(rng.integers(0 if positives else 1, max(1, sampling.max_negatives) + 1))
        return sampling.max_types, min(negatives, sampling.max_types)
    ratio = sampling.negative_ratio
    kept = min(positives, max(1, round(sampling.max_types * (1 - ratio))))
    return kept, min(round(kept * ratio / (1 - ratio)), sampling.max_types - kept)


def _draw(
    labels: list[str], count: int, power: float, frequencies: Mapping[str, int], rng: np.random.Generator
) -> list[str]:
    """Returns `count` different labels, or all if there are fewer."""
    if not power:
        return [labels[i] for i in rng.permutation(len(labels))[:count]]
    # Gumbel's trick: the labels with the largest sum of log weight and noise are a draw without replacement in
    # proportion to the weights.
    keys = power * np.log([max(frequencies.get(label, 1), 1) for label in labels]) + rng.gumbel(size=len(labels))
    return [labels[i] for i in np.argsort(-keys, kind="stable")[:count]]


def _upwards(types: Types, broader: Mapping[str, str]) -> list[str]:
    """Returns the types and, from the broadest on, all broader types."""
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
