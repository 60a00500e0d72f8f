"""The training loop, the same in one process, under torchrun and in a worker of Ray Train.

A step sees one batch, the same however many processes share it: process r of n takes every n-th text of it, and the
loss is divided by the texts of the whole batch. All that is random follows from the seed and the step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spanlake.ahead import read_ahead
from spanlake.data.batches import TokenizedExample, training_batch
from spanlake.data.stream import PROMPT_ROOM, StreamBatch
from spanlake.errors import ShortfallError
from spanlake.inference.hardware import choose_precision
from spanlake.modeling.tokens import Batch
from spanlake.package import Package
from spanlake.storage import Place
from spanlake.training.arithmetic import matrix_rate, step_flops
from spanlake.training.average import Average
from spanlake.training.checkpoints import Progress, loadable
from spanlake.training.data import RecipeData
from spanlake.training.encoders import starting_model
from spanlake.training.engine import Engine, make_engine
from spanlake.training.evaluation import dev_score, publish
from spanlake.training.host import Host
from spanlake.training.loss import span_loss
from spanlake.training.optimiser import rate_at
from spanlake.training.recipe import Recipe
from spanlake.training.tracking import Tracker
from spanlake.training.worker import Worker

_STEPS_AHEAD = 2  # steps whose batches are built while the model works on one
_TEXTS_NAMED = 5  # of a batch whose loss is not finite


@dataclass
class _Window:
    """What has been measured since the last record."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    loss: float = 0.0
    texts: int = 0
    tokens: int = 0
    flops: float = 0.0  # of this process
    waited: float = 0.0  # seconds in which the model had no batch


@dataclass(frozen=True)
class _Part:
    """A part of a step's batch that is read in one forward pass of this process."""

    chosen: list[int]  # indexes of its texts in the batch
    weight: float
    batch: Batch
    true: torch.Tensor  # where the true scores are, as training_batch returns it


class Trainer:
    """One process's part of a run. Every process of the run makes one and calls `train`; all raise together."""

    def __init__(self, recipe: Recipe, data: RecipeData, run: Place, worker: Worker, host: Host) -> None:
        """The model is that of the last checkpoint, or the one that the recipe begins with.

        Raises UserError for an encoder or a tokenizer that cannot be read, ShortfallError for a checkpoint that cannot
        be gone on from.
        """
        if worker.device.type == "cpu" and recipe.parallel.gpus_per_worker and worker.leads:
            print("spanlake: no GPU is there, so this trains on the CPU, which is slow", file=sys.stderr)
        self._recipe, self._data, self._run, self._worker, self._host = recipe, data, run, worker, host
        torch.manual_seed(recipe.seed)
        tokenizer, model, self._base = starting_model(recipe.model)
        self._package = Package(recipe.name, model, tokenizer, _metadata(recipe, data), "")
        self._progress, self._engine, self._average = self._resumed()
        self._progress.size, self._progress.base = worker.size, self._base
        self._precision = _precision(recipe, worker.device)
        self._rate = matrix_rate(worker.device, self._precision)
        self._measures: dict[str, Any] = {}  # the last of each
        self._tracker = Tracker(recipe, run, self._progress.step, host.sends) if worker.leads else None

    def train(self) -> None:
        """Trains to the end of the recipe; the best package is left in the run's directory.

        Raises UserError for data that cannot be read, ShortfallError where the loss stops being finite.
        """
        try:
            if not self._progress.step:
                described = {"precision": str(self._precision).removeprefix("torch.")}
                self._record({**_of_data(self._data, self._package), **described})
            self._train()
        finally:
            if self._tracker:
                self._tracker.close()

    def _resumed(self) -> tuple[Progress, Engine, Average | None]:
        recipe, model, worker = self._recipe, self._package.model, self._worker
        decay, lora = recipe.optim.average, recipe.model.lora
        with self._host.latest() as found:
            if found is None:
                engine = make_engine(recipe, model, worker.device, worker.size, universal=False)
                return Progress(), engine, Average(model, decay, lora) if decay else None
            progress = Progress.read(found)
            if lora and progress.base != self._base:
                raise ShortfallError(
                    f"The model {recipe.model.start} has changed since the run began (its fingerprint was "
                    f"{progress.base[:12]}… and is {self._base[:12]}…); bring it back, or give another --directory."
                )
            with loadable(found, progress.size, recipe, worker) as directory:
                engine = make_engine(recipe, model, worker.device, worker.size, universal=directory != found)
                engine.load(directory)
            average = Average(model, decay, lora) if decay else None
            if average:
                average.load(found)
            return progress, engine, average

    def _train(self) -> None:
        recipe, schedule, progress = self._recipe, self._recipe.schedule, self._progress
        stream = self._data.stream(recipe, self._package.tokenizer, self._package.config)
        batches = stream.batches(progress.position, partial(self._host.pools, stream))
        built = read_ahead(self._built(batches, progress.step + 1), _STEPS_AHEAD, "spanlake-batch")
        window = _Window()
        while progress.step < schedule.steps and not 0 < schedule.patience <= progress.waited:
            asked = time.monotonic()
            batch, parts = next(built)
            window.waited += time.monotonic() - asked
            step = progress.step + 1
            loss, norm = self._step(batch, parts, step)
            if self._average:
                self._average.update(step)
            texts, tokens = len(batch.examples), sum(example.tokens for example in batch.examples)
            progress.step, progress.position = step, batch.position
            progress.texts += texts
            progress.tokens += tokens
            window.steps += 1
            window.loss += loss
            window.texts += texts
            window.tokens += tokens
            window.flops += sum(step_flops(self._package.model, part.batch) for part in parts)
            if step % recipe.logging.every == 0:
                self._record(self._measured(window, norm))
                window = _Window()
            if step % schedule.evaluate_every == 0 or step == schedule.steps:
                self._evaluate()
            if step % recipe.checkpoint.every == 0 or step == schedule.steps:
                self._save()

    def _built(self, batches: Iterator[StreamBatch], first: int) -> Iterator[tuple[StreamBatch, list[_Part]]]:
        """Yields the batch of each step from `first` on, with this process's parts of it.

        What is built depends on the seed and the step alone.
        """
        for step, batch in enumerate(batches, first):
            yield batch, list(self._parts(batch, step))

    def _parts(self, batch: StreamBatch, step: int) -> Iterator[_Part]:
        recipe, package = self._recipe, self._package
        for chosen, weight in _cut_share(batch.examples, self._worker, recipe.schedule.micro_tokens):
            part, true = training_batch(
                batch.examples,
                chosen,
                package.tokenizer,
                self._data.set_types,
                package.config,
                seed=recipe.seed,
                step=step,
                frequencies=self._data.frequencies,
            )
            yield _Part(chosen, weight, part, true)

    def _step(self, batch: StreamBatch, parts: list[_Part], step: int) -> tuple[float, float | None]:
        """One optimiser step. Returns the loss over the whole batch, and the gradient's norm where it is known.

        Raises ShortfallError, in all processes, where the loss is not finite; the weights are as they were.
        """
        recipe, worker, package = self._recipe, self._worker, self._package
        texts = len(batch.examples)
        torch.manual_seed(((recipe.seed * 1_000_003 + step) * 4099 + worker.rank) % 2**63)  # of dropout
        package.model.train()
        loss_sum, odd = 0.0, list[int]()
        for part in parts:
            with torch.autocast(worker.device.type, torch.bfloat16, enabled=self._precision == torch.bfloat16):
                logits = self._engine.forward(part.batch.to(worker.device))
            loss = span_loss(
                logits,
                part.true.to(worker.device, non_blocking=True),
                part.batch.word_counts,
                part.batch.type_counts,
                recipe.optim,
                package.config.token_level,
            )
            self._engine.backward(loss * (part.weight * worker.size / texts))  # gradients are averaged over processes
            value = part.weight * float(loss.detach())
            loss_sum += value
            odd += [] if -float("inf") < value < float("inf") else part.chosen
        total, wrong = worker.total([loss_sum, float(bool(odd))])
        if wrong:
            raise _not_finite(step, [batch.examples[i] for part in worker.gather(odd) for i in part])
        return total / texts, self._engine.step(rate_at(step - 1, recipe.schedule))

    def _measured(self, window: _Window, norm: float | None) -> dict[str, Any]:
        progress = self._progress
        seconds = time.monotonic() - window.began
        rates, lora = self._engine.rates(), self._recipe.model.lora
        return {
            "step": progress.step,
            "loss": window.loss / window.steps,
            "texts": progress.texts,
            "tokens": progress.tokens,
            "texts_per_second": window.texts / seconds,
            "tokens_per_second": window.tokens / seconds,
            "waiting_share": window.waited / seconds,
            "flop_utilisation": window.flops / seconds / self._rate,
            "seconds_left": seconds / window.steps * (self._recipe.schedule.steps - progress.step),
            "encoder_lr": rates[0],
            "head_lr": 0.0 if lora and not lora.train_head else rates[-1],
            "workers": progress.size,
            **({} if norm is None else {"gradient_norm": norm}),
        }

    def _evaluate(self) -> None:
        """Scores the model, and keeps its package where it is the best so far. The first process works, the others
        wait."""
        worker, progress = self._worker, self._progress
        f1 = 0.0
        model = self._engine.whole_model()
        if worker.leads and model is not None:
            whole = replace(self._package, model=self._average.model() if self._average else model)
            f1 = dev_score(whole, self._data.dev)
            if f1 > progress.best:
                publish(self._run, whole, self._recipe.model, self._base, progress.step, f1)
        [f1] = worker.total([f1])
        better = f1 > progress.best
        progress.best, progress.waited = (f1, 0) if better else (progress.best, progress.waited + 1)
        self._record({"step": progress.step, "dev_f1": f1, "best": better})

    def _save(self) -> None:
        def write(directory: Path) -> None:
            self._engine.save(directory)
            if self._worker.leads:
                self._progress.write(directory)
            if self._worker.leads and self._average:
                self._average.save(directory)

        progress = self._progress
        metrics = {**self._measures, "step": progress.step, "best_dev_f1": progress.best}
        self._host.save(write, progress.step, metrics)

    def _record(self, values: dict[str, Any]) -> None:
        self._measures |= values
        if self._tracker:
            self._tracker.record(values)


def _cut_share(
    examples: Sequence[TokenizedExample], worker: Worker, micro_tokens: int
) -> Iterator[tuple[list[int], float]]:
    """This process's share of a batch, cut by `micro_tokens`, and the weight of each part.

    Every process has equally many parts, as each ends in an exchange with the others: parts of weight 0 make up for it.
    """
    shares = [
        _cut(list(range(rank, len(examples), worker.size)), examples, micro_tokens) for rank in range(worker.size)
    ]
    own = shares[worker.rank]
    yield from ((part, 1.0) for part in own)
    for _ in range(max(map(len, shares)) - len(own)):
        yield [0], 0.0


def _cut(chosen: list[int], examples: Sequence[TokenizedExample], micro_tokens: int) -> list[list[int]]:
    """`chosen` come shortest first."""
    parts: list[list[int]] = []
    for i in chosen:
        padded = (examples[i].tokens + PROMPT_ROOM) * (len(parts[-1]) + 1) if parts else 0
        if not parts or (micro_tokens and padded > micro_tokens):
            parts.append([])
        parts[-1].append(i)
    return parts


def _precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Returns the precision of products. float16 would need its losses scaled, so float32 takes its place."""
    chosen = choose_precision(recipe.parallel.precision, device)
    return torch.float32 if chosen == torch.float16 else chosen


def _not_finite(step: int, examples: Sequence[TokenizedExample]) -> ShortfallError:
    named = "; ".join(example.where or "a text" for example in examples[:_TEXTS_NAMED])
    return ShortfallError(
        f"The loss of step {step} is not finite (among {len(examples)} texts: {named}); lower optim.encoder_lr and "
        "optim.head_lr, or look at these texts."
    )


def _metadata(recipe: Recipe, data: RecipeData) -> dict[str, Any]:
    texts = sum(prepared.rows for prepared in data.sets)
    return {
        "license": recipe.license,
        "labels_seen": data.types(recipe.data.ignored_types),
        "training": {"recipe": recipe.to_dict(), "texts": texts, "torch": torch.__version__},
    }


def _of_data(data: RecipeData, package: Package) -> dict[str, Any]:
    texts = sum(prepared.rows for prepared in data.sets)
    wider = data.wider_than(package.config.widest)
    return {
        "step": 0,
        "texts_to_train_on": texts,
        "mentions_wider_than_max_width": wider,
        "mentions_inside_a_word": data.inside_words,
    }
