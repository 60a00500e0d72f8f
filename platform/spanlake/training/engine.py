"""What turns losses into new weights: PyTorch alone in one process, DeepSpeed in several or where ZeRO is asked for.

Weights are float32 in both, and products bfloat16 where the recipe says so, so that both train alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from spanlake.errors import ShortfallError, UserError
from spanlake.modeling.cpu import prepare_cpu_training
from spanlake.modeling.model import SpanModel
from spanlake.training.optimiser import adamw
from spanlake.training.recipe import Recipe

_TAG = "engine"  # of DeepSpeed's files in a checkpoint


class Engine(Protocol):
    """`forward` is called, and `backward`, equally often by every process; then `step` once."""

    forward: nn.Module

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self, rate: float) -> float | None:
        """New weights, at this share of the highest learning rates. Returns the gradient's norm where it is known."""

    def rates(self) -> list[float]:
        """The learning rate of each parameter group."""

    def whole_weights(self) -> Any:
        """A context in which the first process has all weights in its model. Every process enters it."""

    def save(self, directory: Path) -> None:
        """Each process writes its part of the state."""

    def load(self, directory: Path) -> None: ...


def needs_deepspeed(recipe: Recipe, size: int) -> bool:
    return size > 1 or recipe.parallel.zero_stage > 0 or recipe.parallel.offload != "none"


def make_engine(recipe: Recipe, model: SpanModel, device: torch.device, size: int, universal: bool) -> Engine:
    """The engine of one of `size` processes. `universal`: what it will load is a universal checkpoint.

    Raises: UserError where DeepSpeed is needed and not installed.
    """
    model.to(device)
    if device.type == "cpu":
        prepare_cpu_training(model)
    if recipe.parallel.gradient_checkpointing:
        model.encoder.gradient_checkpointing_enable()  # type: ignore[operator]
    if needs_deepspeed(recipe, size):
        return DeepSpeedEngine(recipe, model, universal)
    return PlainEngine(recipe, model)


class PlainEngine:
    def __init__(self, recipe: Recipe, model: SpanModel) -> None:
        self.forward: nn.Module = model
        self._optimiser = adamw(model, recipe.optim)
        self._highest = self.rates()
        self._max_norm = recipe.optim.max_norm

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, rate: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.forward.parameters(), self._max_norm)
        _set_rates(self._optimiser, self._highest, rate)
        self._optimiser.step()
        self._optimiser.zero_grad()
        return float(norm)

    def rates(self) -> list[float]:
        return [group["lr"] for group in self._optimiser.param_groups]

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        yield

    def save(self, directory: Path) -> None:
        state = {"model": self.forward.state_dict(), "optimiser": self._optimiser.state_dict()}
        torch.save(state, directory / f"{_TAG}.pt")

    def load(self, directory: Path) -> None:
        state = torch.load(directory / f"{_TAG}.pt", map_location="cpu", weights_only=True)
        self.forward.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])


class DeepSpeedEngine:
    """Backward passes only accumulate; gradients are reduced once, in `step`, however many parts a batch has."""

    def __init__(self, recipe: Recipe, model: SpanModel, universal: bool) -> None:
        deepspeed = _deepspeed()
        offload = recipe.parallel.offload == "cpu"
        config = {
            "train_micro_batch_size_per_gpu": 1,  # the loop weighs texts itself
            "managed_gradient_accumulation": False,
            "gradient_clipping": recipe.optim.max_norm,
            "zero_optimization": {
                "stage": recipe.parallel.zero_stage,
                "overlap_comm": False,  # the only kind that goes with reducing once
                **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
            },
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW runs on the CPU too, and needs no compiler
            "checkpoint": {"load_universal": universal},
            "steps_per_print": sys.maxsize,
        }
        self._gathered = deepspeed.zero.GatheredParameters
        self._stage = recipe.parallel.zero_stage
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model, recipe.optim), config=config)
        self.forward: nn.Module = self._engine
        self._highest = self.rates()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss)

    def step(self, rate: float) -> float | None:
        _set_rates(self._engine.optimizer, self._highest, rate)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def rates(self) -> list[float]:
        return [group["lr"] for group in self._engine.optimizer.param_groups]

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        with self._gathered(list(self._engine.module.parameters())):
            yield

    def save(self, directory: Path) -> None:
        # What a conversion to a universal checkpoint looks for.
        self._engine.save_checkpoint(str(directory), tag=_TAG, client_state={"universal_checkpoint_info": {}})

    def load(self, directory: Path) -> None:
        # DeepSpeed unpickles: only ever what a run of ours wrote into its own directory.
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if path is None:
            raise ShortfallError(f"DeepSpeed finds nothing to go on from in {directory}.")


def _set_rates(optimiser: Any, highest: list[float], rate: float) -> None:
    for group, value in zip(optimiser.param_groups, highest, strict=True):
        group["lr"] = value * rate


def _deepspeed() -> Any:
    if find_spec("deepspeed") is None:
        raise UserError(
            "Several workers, a ZeRO stage or offloading need DeepSpeed, which is not installed: "
            "pip install 'spanlake[train]'."
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed

    return deepspeed


def make_universal(checkpoint: Path, output: Path) -> None:
    """Converts a checkpoint of DeepSpeed's into one that any number of processes can load (Lian et al. 2024).

    Raises: ShortfallError where it cannot be converted.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
    command += ["--num_merge_workers", "1", "--input_folder", str(checkpoint / _TAG), "--output_folder"]
    done = subprocess.run([*command, str(output / _TAG)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ShortfallError(f"The checkpoint {checkpoint} cannot be converted for another number of workers ({last}).")
