"""Which types a training text is asked for (Zaratiana et al. 2023, sections 3.2 and 5.3), and by which names.

A text's own types are positive. Negative are, as in the paper, types of the other texts of its batch; or, by the
recipe, only those that its annotators are known to have looked for in vain: the ones that the text states, or the other
types of its data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


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


def sample_types(
    own: Sequence[str],
    candidates: Sequence[str],
    sampling: Sampling,
    rng: np.random.Generator,
    frequencies: Mapping[str, int] | None = None,
) -> tuple[list[str], dict[str, int]]:
    """The prompt for one text, in random order, and for each of the text's `own` types its place in the prompt.

    Negatives are drawn from `candidates`; `frequencies` says how often types occur (once, if not said). A type may be
    asked for by a broader one, in which case nothing narrower on that path is asked for. Beside a type, what is broader
    than it is a negative: of the types asked for, the most specific one is right. Own types that are not asked for are
    in neither result.
    """
    own = sorted(set(own))
    levels = int(rng.integers(1, 3)) if rng.random() < sampling.broader_rate else 0
    paths = {label: _upwards(label, sampling.broader) for label in own}
    asked = {label: path[min(levels, len(path) - 1)] for label, path in paths.items()}
    positives = sorted(set(asked.values()))
    positives = [positives[i] for i in rng.permutation(len(positives))]
    true = {step for label, path in paths.items() for step in path[: path.index(asked[label]) + 1]}
    above = {step for path in paths.values() for step in path} - true
    kept, count = _counts(len(positives), sampling, rng)
    chosen = _draw(sorted({*candidates} - true - above), count, sampling.frequency_power, frequencies or {}, rng)
    chosen += [label for label in sorted(above) if rng.random() < sampling.above_rate]
    labels = positives[:kept] + chosen[: sampling.max_types - min(kept, len(positives))]
    labels = [labels[i] for i in rng.permutation(len(labels))]
    if sampling.drop_types and labels:
        labels = labels[: int(rng.integers(1, len(labels) + 1))]
    places = {label: labels.index(name) for label, name in asked.items() if name in labels}
    return _renamed(labels, sampling, rng), places


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


def _upwards(label: str, broader: Mapping[str, str]) -> list[str]:
    """The label, the one broader than it, and so on."""
    path = [label]
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
