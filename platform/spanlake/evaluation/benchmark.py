"""Benchmark sets and their zero-shot scores.

A set is a directory with `labels.json` (every type to ask for) and `test.json`, `dev.json` or `train.json`, the layout
of the out-of-domain benchmark (Zaratiana et al. 2023, Table 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanlake.data.examples import Example, read_sentences
from spanlake.errors import UserError, one_line
from spanlake.evaluation.metrics import Score, Tally
from spanlake.inference.extractor import Extractor


@dataclass(frozen=True)
class BenchmarkSet:
    name: str
    labels: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class SetResult:
    name: str
    texts: int
    overall: Score
    by_label: dict[str, Score]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "texts": self.texts,
            **_percent(self.overall),
            "by_label": {label: _percent(score) for label, score in self.by_label.items()},
        }


def read_sets(directory: Path, split: str) -> list[BenchmarkSet]:
    """The set in `directory`, or those in the directories below it.

    Raises `UserError` where there is none, or one cannot be read.
    """
    homes = (
        [directory]
        if (directory / "labels.json").is_file()
        else sorted(p.parent for p in directory.glob("*/labels.json"))
    )
    if not homes:
        raise UserError(f"{directory} holds no benchmark set; a set is a directory with labels.json and {split}.json.")
    return [_read_set(home, split) for home in homes]


def _read_set(home: Path, split: str) -> BenchmarkSet:
    try:
        labels = json.loads((home / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{home / 'labels.json'} is not JSON ({one_line(error)}).") from error
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{home / 'labels.json'} is no JSON list of type names; give one with all of the set's types.")
    return BenchmarkSet(home.name, tuple(labels), tuple(read_sentences(home / f"{split}.json")))


def evaluate(
    extractor: Extractor, sets: Sequence[BenchmarkSet], *, threshold: float, nested: bool = False
) -> list[SetResult]:
    """Asks for every label of a set in every one of its texts, in lower case as the paper's evaluation does."""
    results = []
    for benchmark in sets:
        tally = Tally()
        labels = [label.lower() for label in benchmark.labels]
        found = extractor.extract([e.text for e in benchmark.examples], labels, threshold=threshold, nested=nested)
        for example, entities in zip(benchmark.examples, found, strict=True):
            tally.add(
                ((entity.start, entity.end, entity.label) for entity in entities),
                ((mention.start, mention.end, mention.label.lower()) for mention in example.mentions),
            )
        results.append(SetResult(benchmark.name, len(benchmark.examples), tally.overall(), tally.by_label()))
    return results


def _percent(score: Score) -> dict[str, float | int]:
    return {
        "precision": round(100 * score.precision, 2),
        "recall": round(100 * score.recall, 2),
        "f1": round(100 * score.f1, 2),
        "gold": score.gold,
        "predicted": score.predicted,
    }
