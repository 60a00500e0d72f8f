"""Trains and scores the variants of a study. What is finished is not done again.

DIRECTORY/VARIANT/             the run of each training; see `spanlake.training.directory`
DIRECTORY/VARIANT/scores.json  its scores, with the recipe and the sets that they are for
DIRECTORY/data/                parts of the data that the study draws
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanlake.errors import UserError
from spanlake.evaluation.pool import ModelChoice, evaluate_model
from spanlake.evaluation.scores import Outcome
from spanlake.evaluation.sets import BenchmarkSet, read_set
from spanlake.evaluation.suites import SUITES, Missing, read_suite
from spanlake.package import peek_metadata
from spanlake.storage import locate
from spanlake.studies.passages import shuffled, write_examples
from spanlake.studies.study import Size, Study, Variant
from spanlake.training.command import train
from spanlake.training.directory import claim
from spanlake.training.recipe import Recipe

_SCORES = "scores.json"
_THRESHOLD = 0.5  # the paper's
_TEST_PASSAGES = 60  # of the example passages; the rest is trained on


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    study: Study
    home: Path  # the directory of the study's file
    size: Size
    directory: Path
    benchmark: Path | None  # a directory with the suite's sets
    changes: Sequence[str]  # of every recipe


@dataclass(frozen=True)
class SetScore:
    name: str
    texts: int
    precision: float  # per cent, as the next two
    recall: float
    f1: float


@dataclass(frozen=True)
class Scored:
    variant: Variant
    recipe: Recipe
    texts: int  # that it was trained on
    sets: tuple[SetScore, ...]

    def mean(self, measure: str) -> float:
        """Returns the mean over the sets of `precision`, `recall` or `f1`, in per cent."""
        return sum(getattr(score, measure) for score in self.sets) / len(self.sets)


def run_study(order: Order) -> tuple[list[Scored], list[Missing]]:
    """Returns the scores of each variant, and the sets of the suite that are not there.

    Raises `UserError` for what the recipes, the data or the directory lack, and if the directory holds another study;
    `ShortfallError` if a training cannot be finished.
    """
    study = order.study
    data_changes: list[str] = []
    missing: list[Missing] = []
    if order.size == "cpu":
        training, test = _example_passages(order)
        data_changes = [f"data.train={json.dumps([str(training)])}"]
        sets = [read_set("example passages", str(test), "test")]
    if order.benchmark:
        suite = SUITES[study.suite]
        sets, missing = read_suite(suite, order.benchmark, suite.split, {})
    elif order.size == "full":
        raise UserError(f"A study at full size needs --data DIR, a directory with the sets of {study.suite}.")
    scored: list[Scored] = []
    # All recipes come first: what they lack is then said before hours of training.
    recipes = [_recipe(order, variant, data_changes) for variant in study.variants]
    for number, (variant, recipe) in enumerate(zip(study.variants, recipes, strict=True), 1):
        print(f"spanlake: training {number} of {len(study.variants)}: {variant.name}", file=sys.stderr, flush=True)
        scored.append(_scored(order, variant, recipe, sets))
    return scored, missing


def _scored(order: Order, variant: Variant, recipe: Recipe, sets: Sequence[BenchmarkSet]) -> Scored:
    run = locate(str(order.directory / variant.name))
    claim(run, recipe)
    asked = {"sets": {each.name: len(each.examples) for each in sets}, "threshold": _THRESHOLD}
    written = json.loads(run.read(_SCORES) or b"{}")
    if written.get("asked") == asked:
        print(f"spanlake: {variant.name} is already trained and scored", file=sys.stderr, flush=True)
    else:
        train(recipe, run.path)
        written = {"asked": asked, **_evaluated(str(order.directory / variant.name / "package"), sets)}
        run.write(_SCORES, json.dumps(written, indent=1).encode())
    return Scored(variant, recipe, written["texts"], tuple(SetScore(**score) for score in written["scores"]))


def _recipe(order: Order, variant: Variant, data_changes: list[str]) -> Recipe:
    changes = [*data_changes, *order.changes]
    if variant.start:
        package = (order.directory / variant.start / "package").absolute()
        of_new_models = ["model.encoder=''", "model.labels_encoder=''"]
        of_new_models += ["model.encoder_config={}", "model.labels_encoder_config={}"]
        changes += [f"model.start={json.dumps(str(package))}", *of_new_models]
    recipe = order.study.recipe(variant, order.size, order.home, changes)
    count = variant.examples.get(order.size)
    if count is None:
        return recipe
    names = [_part(order, recipe, name, count) for name in recipe.data.train]
    return order.study.recipe(variant, order.size, order.home, [*changes, f"data.train={json.dumps(names)}"])


def _part(order: Order, recipe: Recipe, name: str, count: int) -> str:
    """Returns a file with `count` examples of a training set, or all if there are fewer. A larger part holds a smaller
    one."""
    local = Path(recipe.data.root, name)
    source = str(local) if local.exists() else name
    path = (order.directory / "data" / f"{Path(name).with_suffix('')}-{count}.jsonl".replace("/", "-")).absolute()
    if not path.exists():
        write_examples(shuffled(source)[:count], path)
    return str(path)


def _example_passages(order: Order) -> tuple[Path, Path]:
    """Returns the files of the passages to train on and to score on, drawn from those that the small recipes name."""
    recipe = order.study.recipe(order.study.variants[0], "cpu", order.home, list(order.changes))
    training, test = ((order.directory / "data" / name).absolute() for name in ("training.jsonl", "test.jsonl"))
    if not (training.exists() and test.exists()):
        examples = [example for name in recipe.data.train for example in shuffled(str(Path(recipe.data.root, name)))]
        write_examples(examples[:_TEST_PASSAGES], test)
        write_examples(examples[_TEST_PASSAGES:], training)
    return training, test


def _evaluated(package: str, sets: Sequence[BenchmarkSet]) -> dict[str, Any]:
    choice = ModelChoice(package, "auto", "auto")
    facts, outcomes = evaluate_model(choice, sets, threshold=_THRESHOLD, nested=False, workers=None)
    return {
        "fingerprint": facts.fingerprint,
        "texts": peek_metadata(package)["training"]["texts"],
        "scores": [_set_score(outcome) for outcome in outcomes],
    }


def _set_score(outcome: Outcome) -> dict[str, Any]:
    result = outcome.result(_THRESHOLD)
    overall = result.overall
    shares = {"precision": overall.precision, "recall": overall.recall, "f1": overall.f1}
    return {"name": result.name, "texts": result.texts, **{key: round(100 * value, 2) for key, value in shares.items()}}
