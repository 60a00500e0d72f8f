"""Trains a span model in one process."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spanlake.data.batches import training_batch
from spanlake.errors import ShortfallError
from spanlake.evaluation.metrics import Tally
from spanlake.inference.extractor import Extractor
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.package import Package, prompt_tokenizer, repack
from spanlake.training.data import DevSet, RecipeData, recipe_data
from spanlake.training.encoders import starting_model
from spanlake.training.loss import span_loss
from spanlake.training.optimiser import adamw, rate_at
from spanlake.training.recipe import Recipe

_LOG_EVERY = 100  # steps


def train(recipe: Recipe, run_directory: Path) -> Path:
    """Runs the recipe and returns the directory of the package, `run_directory/package`.

    Raises `UserError` for data or an encoder that cannot be read, `ShortfallError` when the loss stops being finite.
    """
    torch.manual_seed(recipe.seed)
    log = run_directory / "metrics.jsonl"
    run_directory.mkdir(parents=True, exist_ok=True)
    (run_directory / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1), encoding="utf-8")
    data = recipe_data(recipe, str(run_directory / "data"))
    tokenizer, model = starting_model(recipe.model)
    prompts = prompt_tokenizer(tokenizer, model.config)
    texts = sum(prepared.rows for prepared in data.sets)
    _report({"texts": texts, "mentions_wider_than_max_width": data.wider_than(model.config.max_width)}, log)
    metadata: dict[str, Any] = {
        "license": recipe.license,
        "labels_seen": data.types(recipe.data.ignored_types),
        "training": {"recipe": recipe.to_dict(), "texts": texts, "torch": torch.__version__},
    }
    best = -1.0
    for step in _optimise(recipe, model, prompts, data, log):
        package = Package(recipe.name, model, prompts, metadata, "")
        f1 = dev_score(package, data.dev)
        _report({"step": step, "dev_f1": f1}, log)
        if f1 > best:
            best = f1
            known = {**metadata, "training": {**metadata["training"], "step": step, "dev_f1": f1}}
            _replace_package(run_directory / "package", package, known)
    return run_directory / "package"


def dev_score(package: Package, sets: Sequence[DevSet]) -> float:
    """The mean over data sets of the exact-match F1 on their dev parts, 0 to 1.

    A text is asked for all types of its data set, or for its own and its stated negatives where it states any.
    """
    package.model.eval()
    extractor = Extractor(package, next(package.model.parameters()).device, torch.float32)
    scores = []
    for data in sets:
        tally = Tally()
        asked = [data.asked(example) for example in data.examples]
        found = extractor.extract([example.text for example in data.examples], asked)
        for example, entities in zip(data.examples, found, strict=True):
            tally.add(
                ((entity.start, entity.end, entity.label) for entity in entities),
                ((mention.start, mention.end, mention.label) for mention in example.mentions),
            )
        scores.append(tally.overall().f1)
    return sum(scores) / len(scores)


def _replace_package(directory: Path, package: Package, metadata: dict[str, Any]) -> None:
    draft = directory.with_name("package.new")
    shutil.rmtree(draft, ignore_errors=True)
    repack(Package(package.name, package.model, package.tokenizer, metadata, ""), draft, name=package.name, int8=False)
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)


def _report(record: dict[str, Any], log: Path) -> None:
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    print(json.dumps(record), file=sys.stderr, flush=True)


def _optimise(recipe: Recipe, model: SpanModel, prompts: PromptTokenizer, data: RecipeData, log: Path) -> Iterator[int]:
    """Trains `model` in place, and yields the step whenever it is time to evaluate and after the last one."""
    schedule, optim = recipe.schedule, recipe.optim
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimiser = adamw(model, optim)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, schedule))
    started, texts, total = time.monotonic(), 0, 0.0
    batches = data.stream(recipe, prompts, model.config).batches()
    for step, chosen in zip(range(1, schedule.steps + 1), batches, strict=False):
        model.train()
        batch, targets = training_batch(
            chosen.examples,
            range(len(chosen.examples)),
            prompts,
            data.sampling,
            model.config,
            seed=recipe.seed,
            step=step,
            frequencies=data.frequencies,
        )
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.parallel.precision == "bfloat16"):
            logits = model(batch.to(device))
        loss = span_loss(logits, targets.to(device), batch.word_counts, batch.type_counts, optim) / len(chosen.examples)
        if not torch.isfinite(loss):
            raise ShortfallError(f"The loss at step {step} is {loss.item()}; lower optim.encoder_lr and optim.head_lr.")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_norm)
        optimiser.step()
        rates.step()
        texts += len(chosen.examples)
        total += loss.item()
        if step % _LOG_EVERY == 0:
            rate = texts / (time.monotonic() - started)
            _report({"step": step, "loss": total / _LOG_EVERY, "texts": texts, "texts_per_second": rate}, log)
            total = 0.0
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            yield step
