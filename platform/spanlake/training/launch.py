"""Training as workers of Ray Train, on any number of machines. The one module of training that imports Ray.

If a worker or its machine dies, Ray starts as many workers as then fit. They go on from the last checkpoint that all
workers reported.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray import train
from ray.exceptions import RayTaskError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge
from ray.util.placement_group import placement_group, remove_placement_group

from spanlake.cluster import cluster, python_path
from spanlake.data.stream import ExampleStream, Pool, PoolPlan
from spanlake.errors import ShortfallError, SpanlakeError, UserError
from spanlake.storage import Place
from spanlake.training.data import RecipeData
from spanlake.training.directory import OWN_FOLDER, RAY_FOLDER, refuse_checkpoints
from spanlake.training.recipe import Recipe
from spanlake.training.tracking import Send, numbers
from spanlake.training.trainer import Trainer
from spanlake.training.worker import Worker

_FAILURES = 50  # of workers and machines; after more, the run ends
_PATIENCE_SECONDS = 7200  # that workers wait while the first one takes the dev score
_RESIZE_SECONDS = 60.0  # between looks at whether more workers fit
_GROWTH_SECONDS = 1200.0  # that a cluster gets to grow
_OBJECT_STORE_BYTES = 300_000_000  # of a Ray of our own; it holds a few pools of texts at a time
_AHEAD = 2  # pools that are read while one is trained on
# A Ray of our own has no dashboard. Without an address that refuses at once, Ray Train looks for one for twelve seconds
# at the end of a run.
_NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
_STOPPED = "stopped.json"  # why a run cannot go on; trying again would not help


def launch(recipe: Recipe, data: RecipeData, run: Place, resize_seconds: float = _RESIZE_SECONDS) -> None:
    """Runs the recipe on the cluster at RAY_ADDRESS (a job has one), or on a new one on this machine.

    Raises: UserError if the cluster has too little; ShortfallError if training cannot go on.
    """
    refuse_checkpoints(run, OWN_FOLDER)
    with cluster(_OBJECT_STORE_BYTES, _NO_DASHBOARD):
        _wait_for_room(recipe)
        fewest, most = recipe.parallel.workers
        run.delete(_STOPPED)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"recipe": recipe, "data": data, "run": run},
            torch_config=TorchConfig(
                "nccl" if recipe.parallel.gpus_per_worker else "gloo", timeout_s=_PATIENCE_SECONDS
            ),
            # The type hints of ray.train describe its first version.
            scaling_config=train.ScalingConfig(  # type: ignore[call-arg]
                num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
                use_gpu=recipe.parallel.gpus_per_worker > 0,
                resources_per_worker=_resources(recipe),
                elastic_resize_monitor_interval_s=resize_seconds,
            ),
            run_config=train.RunConfig(  # type: ignore[call-arg]
                name=RAY_FOLDER,
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                failure_config=train.FailureConfig(max_failures=_FAILURES),
                checkpoint_config=train.CheckpointConfig(num_to_keep=recipe.checkpoint.keep),
                # Threads of OpenMP that wait would otherwise spin on cores that others could use.
                worker_runtime_env={"env_vars": {"PYTHONPATH": python_path(), "OMP_WAIT_POLICY": "passive"}},
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # of many kinds; the last line of the message tells why
            *_, line = str(error).strip().splitlines() or [type(error).__name__]
            reason = line.strip().rstrip(".")[:300]
            raise ShortfallError(
                f"Training stopped ({reason}); the same command goes on from the last checkpoint."
            ) from error
    stopped = run.read(_STOPPED)
    if stopped is not None:
        reason = json.loads(stopped)
        raise (UserError if reason["user"] else ShortfallError)(reason["message"])


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    recipe, run = config["recipe"], config["run"]
    if run.read(_STOPPED) is not None:
        return
    context = train.get_context()
    device = train.torch.get_device() if recipe.parallel.gpus_per_worker else torch.device("cpu")
    worker = Worker(context.get_world_rank(), context.get_world_size(), context.get_local_rank(), device)
    if device.type == "cpu":
        torch.set_num_threads(recipe.parallel.cpus_per_worker)
    try:
        Trainer(recipe, config["data"], run, worker, RayHost(recipe.name, worker)).train()
    except SpanlakeError as error:  # trying again would end the same way, so workers that are started again return
        if worker.leads or run.read(_STOPPED) is None:
            run.write(_STOPPED, json.dumps({"message": str(error), "user": isinstance(error, UserError)}).encode())
        raise  # if only this one failed, the others wait for it; raising makes Ray stop them


class RayHost:
    """Ray keeps the workers' checkpoints in the run's storage. Ray tasks read the data, on any machine."""

    def __init__(self, recipe: str, worker: Worker) -> None:
        """`recipe` is its name."""
        self.sends = (_to_gauges(recipe),)
        self._worker = worker
        self._reader: Any = None

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as directory:
            yield Path(directory)

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, Any]) -> None:
        with TemporaryDirectory() as local:
            write(Path(local))
            checkpoint = train.Checkpoint.from_directory(local)
            train.report(metrics, checkpoint=checkpoint)

    def pools(self, stream: ExampleStream, plans: Sequence[PoolPlan]) -> Iterator[Pool]:
        """Yields pools whose arrays stay in the object store, where the workers of a machine share them."""
        if self._reader is None:
            reader: Any = None
            if self._worker.leads:
                reader = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Reader).remote(stream)
            self._reader = broadcast_from_rank_zero(reader)
        for plan in plans:
            [pool] = ray.get(self._reader.pool.remote(plan.epoch, plan.number))
            yield _fetched(pool)


def _fetched(pool: "ray.ObjectRef[Pool]") -> Pool:
    try:
        return ray.get(pool)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise


def _to_gauges(recipe: str) -> Send:
    """Returns a function that sets Ray's metrics, such as `ray_spanlake_training_loss`.

    A report to Ray Train would make all workers wait.
    """
    gauges: dict[str, Gauge] = {}

    def send(values: dict[str, Any]) -> None:
        for name, value in numbers(values).items():
            if name not in gauges:
                gauges[name] = Gauge(f"spanlake_training_{name}", tag_keys=("recipe",))
            gauges[name].set(value, {"recipe": recipe})

    return send


class _Reader:
    """Starts a task for each pool, once for all workers and some pools ahead. It keeps references, not the pools."""

    def __init__(self, stream: ExampleStream) -> None:
        self._stream, self._shared = stream, ray.put(stream)
        self._pools: dict[tuple[int, int], ray.ObjectRef[Pool]] = {}

    def pool(self, epoch: int, number: int) -> "list[ray.ObjectRef[Pool]]":
        """Returns a list of one reference: to the pool. References to earlier pools are dropped."""
        wanted = {(epoch, plan.number): plan for plan in self._stream.plans(epoch)[number : number + 1 + _AHEAD]}
        self._pools = {key: self._pools.get(key) or self._begin(plan) for key, plan in wanted.items()}
        return [self._pools[epoch, number]]

    def _begin(self, plan: PoolPlan) -> "ray.ObjectRef[Pool]":
        # Workers may hold every CPU of the cluster. A task that asks for one would then wait for ever.
        cpus = 1 if ray.available_resources().get("CPU", 0) >= 1 else 0
        return _read.options(num_cpus=cpus).remote(self._shared, plan)


@ray.remote
def _read(stream: ExampleStream, plan: PoolPlan) -> Pool:
    return stream.load(plan)


def _resources(recipe: Recipe) -> dict[str, float]:
    parallel = recipe.parallel
    resources = {"CPU": float(parallel.cpus_per_worker)}
    return resources | ({"GPU": float(parallel.gpus_per_worker)} if parallel.gpus_per_worker else {})


def _wait_for_room(recipe: Recipe) -> None:
    """Waits for a cluster at RAY_ADDRESS to grow until the fewest workers fit.

    Raises UserError if it does not grow, and at once if the cluster is this machine's own and too small.
    """
    asked, fewest, has = _resources(recipe), recipe.parallel.workers[0], ray.cluster_resources()
    lacking = [name for name, each in asked.items() if fewest * each > has.get(name, 0.0)]
    if not lacking:
        return
    name = lacking[0]
    short = (
        f"The recipe asks for {fewest} workers with {asked[name]:g} {name} each, and the Ray cluster has "
        f"{has.get(name, 0.0):g} {name}"
    )
    if "RAY_ADDRESS" in os.environ:
        print(f"spanlake: {short}; waiting {_GROWTH_SECONDS / 60:g} minutes for it to grow", file=sys.stderr)
        room = placement_group([asked] * fewest)  # an autoscaler starts nodes for it
        grown = room.wait(_GROWTH_SECONDS)
        remove_placement_group(room)
        if grown:
            return
    raise UserError(f"{short}: lower parallel.workers or parallel.{name.lower()}s_per_worker, or use a larger cluster.")
