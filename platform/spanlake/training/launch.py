"""Training as workers of Ray Train, on any number of machines. The one module of training that imports Ray.

Ray starts the workers again when one of them, its machine or this process dies, with as many as it then has; they go
on from the last checkpoint that all of them reported.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.data
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from spanlake.cluster import cluster, python_path
from spanlake.data.stream import ExampleStream, Pool, PoolPlan
from spanlake.errors import ShortfallError, SpanlakeError, UserError, one_line
from spanlake.storage import Place
from spanlake.training.data import RecipeData
from spanlake.training.directory import OWN_FOLDER, RAY_FOLDER, refuse_checkpoints
from spanlake.training.recipe import Recipe
from spanlake.training.trainer import Trainer
from spanlake.training.worker import Worker

_FAILURES = 50  # of workers and machines, before a run is given up
_PATIENCE_SECONDS = 7200  # of workers that wait for the first one's dev score
_RESIZE_SECONDS = 60.0  # between looks at whether more workers fit
_OBJECT_STORE_BYTES = 300_000_000  # of a Ray of our own; texts do not pass through it
_READERS = 2  # pools that are read at a time
_STOPPED = "stopped.json"  # why a run cannot go on, where trying again would not help


def launch(recipe: Recipe, data: RecipeData, run: Place, resize_seconds: float = _RESIZE_SECONDS) -> None:
    """Run the recipe on the cluster at RAY_ADDRESS (a job has one), or on a new one on this machine.

    Raises: UserError where the cluster has too little; ShortfallError where training cannot go on.
    """
    refuse_checkpoints(run, OWN_FOLDER)
    with cluster(_OBJECT_STORE_BYTES):
        _check_room(recipe)
        fewest, most = recipe.parallel.workers
        if run.read(_STOPPED) is not None:
            run.filesystem.delete_file(run.child(_STOPPED))
        trainer = TorchTrainer(
            _work,
            train_loop_config={"recipe": recipe, "data": data, "run": run},
            torch_config=TorchConfig(
                "nccl" if recipe.parallel.gpus_per_worker else "gloo", timeout_s=_PATIENCE_SECONDS
            ),
            scaling_config=ScalingConfig(
                num_workers=most if fewest == most else (fewest, most),
                use_gpu=recipe.parallel.gpus_per_worker > 0,
                resources_per_worker=_resources(recipe),
                elastic_resize_monitor_interval_s=resize_seconds,
            ),
            run_config=RunConfig(  # type: ignore[arg-type] # its own stubs mean the old one
                name=RAY_FOLDER,
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                failure_config=FailureConfig(max_failures=_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=recipe.checkpoint.keep),
                worker_runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # of many kinds
            raise ShortfallError(
                f"Training stopped ({one_line(error)}); the same command goes on from the last checkpoint."
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
        Trainer(recipe, config["data"], run, worker, RayHost(worker)).train()
    except SpanlakeError as error:  # trying again would end the same way, so those that are started again return
        if worker.leads or run.read(_STOPPED) is None:
            run.write(_STOPPED, json.dumps({"message": str(error), "user": isinstance(error, UserError)}).encode())
        raise  # else the others wait for this one, where it alone failed


class RayHost:
    """Ray puts together what the workers report, in the run's storage."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

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
        """Ray Data reads and tokenizes, wherever the cluster has a free CPU; the first worker hands out what comes."""
        rows = _read_ahead(stream, plans) if self._worker.leads else iter(())
        for _ in plans:
            content, error = self._worker.from_first(next(rows, (None, None)))
            if error is not None:
                raise UserError(error)
            yield pickle.loads(content)  # of our own making


def _read_ahead(stream: ExampleStream, plans: Sequence[PoolPlan]) -> Iterator[tuple[bytes, str | None]]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    shared = ray.put((stream, plans))

    def read(row: dict[str, int]) -> dict[str, bytes | str | None]:
        stream, plans = ray.get(shared)
        try:
            return {"pool": pickle.dumps(stream.load(plans[row["number"]])), "error": None}
        except UserError as error:
            return {"pool": b"", "error": str(error)}

    numbers = [{"number": number} for number in range(len(plans))]
    # Workers may hold every CPU of a cluster that cannot grow; tasks that asked for one would wait for ever.
    cpus = 1 if _can_grow() or ray.available_resources().get("CPU", 0) >= 1 else 0
    pools = ray.data.from_items(numbers, override_num_blocks=len(plans)).map(read, num_cpus=cpus, concurrency=_READERS)
    yield from ((row["pool"], row["error"]) for row in pools.iter_rows())


def _resources(recipe: Recipe) -> dict[str, float]:
    parallel = recipe.parallel
    resources = {"CPU": float(parallel.cpus_per_worker)}
    return resources | ({"GPU": float(parallel.gpus_per_worker)} if parallel.gpus_per_worker else {})


def _check_room(recipe: Recipe) -> None:
    """A cluster that grows by itself may have less now than it will have, and is not held to it."""
    fewest = recipe.parallel.workers[0]
    has = ray.cluster_resources()
    for name, each in _resources(recipe).items():
        if fewest * each > has.get(name, 0.0) and not _can_grow():
            raise UserError(
                f"The recipe asks for {fewest} workers with {each:g} {name} each, and the Ray cluster has "
                f"{has.get(name, 0.0):g} {name}: lower parallel.workers or parallel.{name.lower()}s_per_worker, or use "
                "a larger cluster."
            )


def _can_grow() -> bool:
    """Whether the cluster has an autoscaler that has told of node types it may start."""
    from ray._private.worker import global_worker

    client: Any = global_worker
    return bool(client.gcs_client.internal_kv_get(b"__autoscaling_config", None))
