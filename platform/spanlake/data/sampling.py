"""Which types a training text is asked for (Zaratiana et al. 2023, sections 3.2 and 5.3), and by which names.

A text's own types are positive; its data set's other types are negative, as its annotators looked for those and found
none. Types of other data sets are not: nobody looked for them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How types are chosen."""

    max_types: int = 25  # in one prompt
    negatives: Literal["batch", "own"] = "batch"  # from the batch's other texts, or those that the text's set states
    negative_ratio: float = 0.5  # of the types asked for, with negatives from the batch
    max_negatives: int = 12  # own ones: their number is drawn from 0 (1 for a text without mentions) to this
    drop_types: bool = True  # keep only a random number of the types
    frequency_power: float = 0.0  # negatives are drawn in proportion to this power of how often they occur; 0: evenly
    description_rate: float = 0.0  # types that go by their description
    broader_rate: float = 0.0  # texts whose types are replaced by ones broader by one or two steps
    above_rate: float = 0.0  # types broader than those asked for that become negatives
    synonym_rate: float = 0.0  # types that go by one of their synonyms
    broader: Mapping[str, str] = field(default_factory=dict)  # type -> the wider type it is a kind of
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)


def sample_types(
    own: Sequence[str], inventory: Sequence[str], sampling: Sampling, rng: np.random.Generator
) -> tuple[list[str], dict[str, int]]:
    """The prompt for one text, in random order, and for each of the text's `own` types its place in the prompt.

    A type may be asked for by a broader one, in which case nothing narrower on that path is asked for. Beside a type,
    what is broader than it is a negative: of the types asked for, the most specific one is right. Own types beyond
    `max_types` are left out of both.
    """
    own = sorted(set(own))
    levels = int(rng.integers(1, 3)) if rng.random() < sampling.broader_rate else 0
    paths = {label: _upwards(label, sampling.broader) for label in own}
    asked = {label: path[min(levels, len(path) - 1)] for label, path in paths.items()}
    positives = sorted(set(asked.values()))
    true = {step for label, path in paths.items() for step in path[: path.index(asked[label]) + 1]}
    above = {step for path in paths.values() for step in path} - true
    others = sorted({*inventory} - true - above)
    count = int(rng.integers(0 if positives else 1, sampling.max_negatives + 1))
    chosen = [others[i] for i in rng.permutation(len(others))[:count]]
    chosen += [label for label in sorted(above) if rng.random() < sampling.above_rate]
    labels = [positives[i] for i in rng.permutation(len(positives))][: sampling.max_types]
    labels += chosen[: sampling.max_types - len(labels)]
    labels = [labels[i] for i in rng.permutation(len(labels))]
    places = {label: labels.index(name) for label, name in asked.items() if name in labels}
    return _renamed(labels, sampling, rng), places


def _upwards(label: str, broader: Mapping[str, str]) -> list[str]:
    """The label, the one broader than it, and so on."""
    path = [label]
    while path[-1] in broader and broader[path[-1]] not in path:
        path.append(broader[path[-1]])
    return path


def _renamed(labels: list[str], sampling: Sampling, rng: np.random.Generator) -> list[str]:
    names = list(labels)
    for i, label in enumerate(labels):
        others = [name for name in sampling.synonyms.get(label, ()) if name not in names]
        if others and rng.random() < sampling.synonym_rate:
            names[i] = others[int(rng.integers(len(others)))]
    return names
