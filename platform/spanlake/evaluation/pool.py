"""Evaluates on a pool of Ray actors, each with the model loaded. The only module of evaluation that imports Ray."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, SpanlakeError, described
from spanlake.evaluation.scores import ModelFacts, Outcome, evaluate, find, texts_of
from spanlake.evaluation.sets import BenchmarkSet
from spanlake.inference.extractor import Extractor
from spanlake.ray_job import is_ray_job

_OBJECT_STORE_BYTES = 300_000_000
_TEXTS = 256  # in one task: enough to sort by length
_RESTARTS = 3  # of a worker that dies


@dataclass(frozen=True)
class ModelChoice:
    """The arguments of `Extractor.load`."""

    model: str
    device: str
    precision: str


def evaluate_model(
    choice: ModelChoice, sets: Sequence[BenchmarkSet], *, threshold: float | None, nested: bool, workers: int | None
) -> tuple[ModelFacts, list[Outcome]]:
    """Returns the same as `evaluate`, and facts about the model.

    Evaluates in this process, or on Ray if `workers` are asked for or this is the entrypoint of a Ray job. Raises as
    `evaluate_on_ray` and `Extractor.load` do.
    """
    if workers or is_ray_job():
        return evaluate_on_ray(choice, sets, threshold=threshold, nested=nested, workers=workers)
    with Extractor.load(choice.model, device=choice.device, precision=choice.precision) as extractor:
        return ModelFacts.of(extractor), list(evaluate(extractor, sets, threshold=threshold, nested=nested))


def evaluate_on_ray(
    choice: ModelChoice, sets: Sequence[BenchmarkSet], *, threshold: float | None, nested: bool, workers: int | None
) -> tuple[ModelFacts, list[Outcome]]:
    """Returns the same as `evaluate`. Runs on this process's Ray cluster, the one at RAY_ADDRESS, or a new one.

    `workers`: by default one for each GPU, or one for four CPUs if there is no GPU.

    Raises `UserError` if no cluster answers or the model cannot be loaded, `ShortfallError` if workers die.
    """
    import ray

    from spanlake.cluster import cluster

    with redirect_stdout(sys.stderr), cluster(_OBJECT_STORE_BYTES):
        try:
            return _evaluate(choice, sets, threshold, nested, workers)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpanlakeError):
                raise error.cause from error
            raise _stopped(error.cause) from error
        except ray.exceptions.RayError as error:
            raise _stopped(error) from error


def _stopped(error: BaseException) -> ShortfallError:
    return ShortfallError(f"The evaluation stopped ({described(error)}); run it again.")


def _evaluate(
    choice: ModelChoice, sets: Sequence[BenchmarkSet], threshold: float | None, nested: bool, workers: int | None
) -> tuple[ModelFacts, list[Outcome]]:
    import ray
    from ray.util import ActorPool

    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    on_gpu = choice.device == "cuda" or (gpus > 0 and choice.device != "cpu")
    count = workers or (max(1, gpus) if on_gpu else max(1, int(cpus) // 4))
    threads = max(1, int(cpus) // count)
    actor: Any = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Worker)
    made = actor.options(num_cpus=0 if on_gpu else threads, num_gpus=1 if on_gpu else 0)
    actors = [made.remote(choice, threads) for _ in range(count)]
    model: ModelFacts = ray.get(actors[0].model.remote())
    pool: Any = ActorPool(actors)
    answers = pool.map(lambda worker, task: worker.find.remote(*task), _tasks(sets, threshold, nested))
    return model, list(_gathered(sets, answers))


def _tasks(sets: Sequence[BenchmarkSet], threshold: float | None, nested: bool) -> Iterator[tuple[Any, ...]]:
    for benchmark in sets:
        texts, asked = texts_of(benchmark), [benchmark.asked(example) for example in benchmark.examples]
        for start in range(0, len(texts), _TEXTS):
            part = slice(start, start + _TEXTS)
            yield texts[part], asked[part], threshold, nested or benchmark.nested


def _gathered(sets: Sequence[BenchmarkSet], answers: Iterator[list[list[Entity]]]) -> Iterator[Outcome]:
    for benchmark in sets:
        found: list[list[Entity]] = []
        while len(found) < len(benchmark.examples):
            found += next(answers)
        yield Outcome(benchmark, found)


class _Worker:
    """Loads the model with the first texts, so that a model that cannot be loaded is an error, not a dead actor."""

    def __init__(self, choice: ModelChoice, threads: int) -> None:
        self._choice, self._threads = choice, threads

    @cached_property
    def _extractor(self) -> Extractor:
        choice = self._choice
        return Extractor.load(choice.model, device=choice.device, precision=choice.precision, threads=self._threads)

    def model(self) -> ModelFacts:
        return ModelFacts.of(self._extractor)

    def find(
        self, texts: Sequence[str], asked: Sequence[Sequence[str]], threshold: float | None, nested: bool
    ) -> list[list[Entity]]:
        return find(self._extractor, texts, asked, threshold, nested)
