"""The training loop, the same in one process, under torchrun and in a worker of Ray Train.

A step sees one batch, the same however many processes share it: process r of n takes every n-th text of it, and the
loss is divided by the texts of the whole batch. All that is random follows from the seed and the step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from spanlake.data.batches import TokenizedExample, training_batch
from spanlake.data.stream import PROMPT_ROOM, ExampleStream, Pool, PoolPlan, StreamBatch
from spanlake.errors import ShortfallError
from spanlake.package import Package, prompt_tokenizer
from spanlake.storage import Place
from spanlake.training.checkpoints import Checkpoints, Progress
from spanlake.training.data import RecipeData
from spanlake.training.encoders import starting_model
from spanlake.training.engine import Engine, make_engine, make_universal, needs_deepspeed
from spanlake.training.evaluation import dev_score, publish
from spanlake.training.loss import span_loss
from spanlake.training.optimiser import rate_at
from spanlake.training.recipe import Recipe
from spanlake.training.tracking import Tracker

_TEXTS_NAMED = 5  # of a batch whose loss is not finite


@dataclass(frozen=True)
class Worker:
    """One process among those of a run. `torch.distributed` is set up where there are several."""

    rank: int
    size: int
    local_rank: int  # among those of its machine
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        sums = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            sums = sums.to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(sums)
        return sums.tolist()

    def from_first(self, value: Any) -> Any:
        """What the first process gives; that of the others is not looked at."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@dataclass
class _Window:
    """What has been measured since the last record."""

    began: float
    steps: int = 0
    loss: float = 0.0
    texts: int = 0
    tokens: int = 0


def fit(
    recipe: Recipe,
    data: RecipeData,
    run: Place,
    worker: Worker,
    checkpoints: Checkpoints,
    load: Callable[[ExampleStream, Sequence[PoolPlan]], Iterator[Pool]] | None = None,
) -> None:
    """Train from the last checkpoint on, or from the beginning; the best package is left in the run's directory.

    `load` reads the pools of a stream in their order, for all processes together; without it each reads for itself.

    Raises: UserError for data or an encoder that cannot be read; ShortfallError where the loss stops being finite. All
    processes raise together.
    """
    if worker.device.type == "cpu" and recipe.parallel.gpus_per_worker and worker.leads:
        print("spanlake: no GPU is there, so this trains on the CPU, which is slow", file=sys.stderr)
    torch.manual_seed(recipe.seed)
    tokenizer, model = starting_model(recipe.model)
    prompts = prompt_tokenizer(tokenizer, model.config)
    with checkpoints.latest() as found:
        progress = Progress.read(found) if found else Progress()
        with _loadable(found, recipe, progress, worker) as directory:
            universal = directory is not None and directory != found
            engine = make_engine(recipe, model, worker.device, worker.size, universal)
            if directory:
                engine.load(directory)
    progress.size = worker.size
    package = Package(recipe.name, model, prompts, _metadata(recipe, data), "")
    tracker = Tracker(recipe, run, progress.step) if worker.leads else None
    if tracker and not progress.step:
        _report_data(tracker, data, package)
    try:
        stream = data.stream(recipe, prompts, model.config)
        batches = stream.batches(progress.position, partial(load, stream) if load else None)
        _run(recipe, data, run, worker, checkpoints, engine, package, progress, batches, tracker)
    finally:
        if tracker:
            tracker.close()


def _run(
    recipe: Recipe,
    data: RecipeData,
    run: Place,
    worker: Worker,
    checkpoints: Checkpoints,
    engine: Engine,
    package: Package,
    progress: Progress,
    batches: Iterator[StreamBatch],
    tracker: Tracker | None,
) -> None:
    schedule = recipe.schedule
    window = _Window(time.monotonic())
    while progress.step < schedule.steps and not _is_over(recipe, progress):
        batch = next(batches)
        step = progress.step + 1
        loss, norm = _step(recipe, data, engine, package, worker, batch, step)
        progress.step, progress.position = step, batch.position
        tokens = sum(example.tokens for example in batch.examples)
        progress.texts += len(batch.examples)
        progress.tokens += tokens
        window.steps += 1
        window.loss += loss
        window.texts += len(batch.examples)
        window.tokens += tokens
        if tracker and step % recipe.logging.every == 0:
            tracker.record(_measured(recipe, window, norm, engine, progress))
            window = _Window(time.monotonic())
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            _evaluate(data, run, worker, engine, package, progress, tracker)
        if step % recipe.checkpoint.every == 0 or step == schedule.steps:
            _save(checkpoints, engine, progress, worker)


def _is_over(recipe: Recipe, progress: Progress) -> bool:
    return 0 < recipe.schedule.patience <= progress.waited


def _step(
    recipe: Recipe,
    data: RecipeData,
    engine: Engine,
    package: Package,
    worker: Worker,
    batch: StreamBatch,
    step: int,
) -> tuple[float, float | None]:
    """One optimiser step. Returns the loss over the whole batch, and the gradient's norm where it is known.

    Raises: ShortfallError, in all processes, where the loss is not finite; the weights are as they were.
    """
    texts = len(batch.examples)
    torch.manual_seed(((recipe.seed * 1_000_003 + step) * 4099 + worker.rank) % 2**63)  # of dropout
    package.model.train()
    loss_sum, odd = 0.0, list[int]()
    for chosen, weight in _parts(batch.examples, worker, recipe.schedule.micro_tokens):
        part, targets = training_batch(
            batch.examples,
            chosen,
            package.tokenizer,
            data.sampling,
            package.config,
            seed=recipe.seed,
            step=step,
            frequencies=data.frequencies,
        )
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=recipe.parallel.precision == "bfloat16"):
            logits = engine.forward(part.to(worker.device))
        loss = span_loss(logits, targets.to(worker.device), part.word_counts, part.type_counts, recipe.optim)
        engine.backward(loss * (weight * worker.size / texts))  # gradients are averaged over processes
        value = weight * float(loss.detach())
        loss_sum += value
        odd += [] if -float("inf") < value < float("inf") else chosen
    total, wrong = worker.total([loss_sum, float(bool(odd))])
    if wrong:
        raise _not_finite(step, [batch.examples[i] for part in worker.gather(odd) for i in part])
    return total / texts, engine.step(rate_at(step - 1, recipe.schedule))


def _parts(
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


def _not_finite(step: int, examples: Sequence[TokenizedExample]) -> ShortfallError:
    named = "; ".join(example.where or "a text" for example in examples[:_TEXTS_NAMED])
    return ShortfallError(
        f"The loss of step {step} is not finite (among {len(examples)} texts: {named}); lower optim.encoder_lr and "
        "optim.head_lr, or look at these texts."
    )


def _measured(
    recipe: Recipe, window: _Window, norm: float | None, engine: Engine, progress: Progress
) -> dict[str, Any]:
    seconds = time.monotonic() - window.began
    rates = engine.rates()
    return {
        "step": progress.step,
        "loss": window.loss / window.steps,
        "texts": progress.texts,
        "tokens": progress.tokens,
        "texts_per_second": window.texts / seconds,
        "tokens_per_second": window.tokens / seconds,
        "seconds_left": seconds / window.steps * (recipe.schedule.steps - progress.step),
        "encoder_lr": rates[0],
        "head_lr": rates[-1],
        "workers": progress.size,
        **({} if norm is None else {"gradient_norm": norm}),
    }


def _evaluate(
    data: RecipeData,
    run: Place,
    worker: Worker,
    engine: Engine,
    package: Package,
    progress: Progress,
    tracker: Tracker | None,
) -> None:
    """Score the model, and keep its package where it is the best so far. The first process works, the others wait."""
    f1 = 0.0
    model = engine.whole_model()
    if worker.leads and model is not None:
        whole = replace(package, model=model)
        f1 = dev_score(whole, data.dev)
        if f1 > progress.best:
            publish(run, whole, progress.step, f1)
    [f1] = worker.total([f1])
    better = f1 > progress.best
    progress.best, progress.waited = (f1, 0) if better else (progress.best, progress.waited + 1)
    if tracker:
        tracker.record({"step": progress.step, "dev_f1": f1, "best": better})


def _save(checkpoints: Checkpoints, engine: Engine, progress: Progress, worker: Worker) -> None:
    def write(directory: Path) -> None:
        engine.save(directory)
        if worker.leads:
            progress.write(directory)

    checkpoints.save(write, progress.step, {"step": progress.step, "best_dev_f1": progress.best})


class _loadable:  # noqa: N801 (a context manager)
    """The checkpoint as this number of processes can load it: as it is, or converted, once on each machine."""

    def __init__(self, found: Path | None, recipe: Recipe, progress: Progress, worker: Worker) -> None:
        self._found, self._worker = found, worker
        sharded = recipe.parallel.zero_stage > 0 and needs_deepspeed(recipe, worker.size)
        self._converts = found is not None and sharded and progress.size != worker.size
        self._own: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path | None:
        if not self._converts or self._found is None:
            return self._found
        if self._worker.local_rank == 0:
            self._own = TemporaryDirectory(prefix="spanlake-universal-")
            make_universal(self._found, Path(self._own.name))
        machine = _machine()
        places = self._worker.gather((machine, self._own.name if self._own else None))
        return Path(next(place for where, place in places if where == machine and place))

    def __exit__(self, *_: object) -> None:
        if self._converts:
            self._worker.wait()
            if self._own:
                self._own.cleanup()


def _machine() -> str:
    """What tells machines apart; several nodes of a cluster on one machine see the same files, so any copy will do."""
    import socket

    return socket.gethostname()


def _metadata(recipe: Recipe, data: RecipeData) -> dict[str, Any]:
    texts = sum(prepared.rows for prepared in data.sets)
    return {
        "license": recipe.license,
        "labels_seen": data.types(recipe.data.ignored_types),
        "training": {"recipe": recipe.to_dict(), "texts": texts, "torch": torch.__version__},
    }


def _report_data(tracker: Tracker, data: RecipeData, package: Package) -> None:
    texts = sum(prepared.rows for prepared in data.sets)
    wider = data.wider_than(package.config.max_width)
    tracker.record({"step": 0, "texts_to_train_on": texts, "mentions_wider_than_max_width": wider})
