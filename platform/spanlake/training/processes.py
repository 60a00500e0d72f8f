"""Training without Ray: in this process, or in processes that torchrun started.

Ray Train's local mode covers both. But it keeps no checkpoints, it needs Ray, and its processes wait for the first one
only as long as PyTorch's default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist

from spanlake.storage import Place
from spanlake.training.data import RecipeData
from spanlake.training.directory import RAY_FOLDER, refuse_checkpoints
from spanlake.training.engine import needs_deepspeed
from spanlake.training.host import OwnHost
from spanlake.training.recipe import Recipe
from spanlake.training.tracking import showing
from spanlake.training.trainer import Trainer
from spanlake.training.worker import Worker

_PATIENCE = timedelta(hours=2)  # that processes wait while the first one takes the dev score


def train_here(recipe: Recipe, run: Place, prepare: Callable[[Recipe, Place], RecipeData]) -> None:
    """The first process calls `prepare`, then the others do. Raises what `prepare` and the trainer raise."""
    refuse_checkpoints(run, RAY_FOLDER)
    with _group(recipe) as worker:
        data = prepare(recipe, run) if worker.leads else None
        worker.wait()
        host = OwnHost(run, recipe.checkpoint.keep, worker)
        with showing(recipe, run) if worker.leads else nullcontext():
            Trainer(recipe, data or prepare(recipe, run), run, worker, host).train()


@contextmanager
def _group(recipe: Recipe) -> Iterator[Worker]:
    """Returns this process's place among those of torchrun. A process alone is the only one."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if not launched and not needs_deepspeed(recipe, 1):
        yield Worker(0, 1, 0, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if launched:
        dist.init_process_group(backend, timeout=_PATIENCE)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed does not start without it
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Worker(dist.get_rank(), dist.get_world_size(), local_rank, device)
    finally:
        dist.destroy_process_group()
