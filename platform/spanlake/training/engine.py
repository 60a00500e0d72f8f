"""Engines turn losses into new weights: PyTorch alone in one process, DeepSpeed in several processes or with ZeRO.

Both train alike: weights are float32, and products are bfloat16 if the recipe says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from spanlake.errors import ShortfallError, UserError
from spanlake.modeling.cpu import prepare_cpu_training
from spanlake.modeling.model import SpanModel
from spanlake.training.lora import like
from spanlake.training.optimiser import adamw
from spanlake.training.recipe import Recipe

_TAG = "engine"  # of DeepSpeed's files in a checkpoint


class Engine(Protocol):
    """In each step, every process calls `forward` and `backward` equally often, then `step` once."""

    forward: nn.Module

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self, rate: float) -> float | None:
        """Updates the weights, at a share of the highest learning rates. Returns the gradient's norm if it is known."""

    def rates(self) -> list[float]:
        """Returns the learning rate of each parameter group."""

    def whole_model(self) -> SpanModel | None:
        """Returns the whole model in the first process. Every process calls it."""

    def save(self, directory: Path) -> None:
        """Writes this process's part of the state."""

    def load(self, directory: Path) -> None: ...


def needs_deepspeed(recipe: Recipe, size: int) -> bool:
    """Returns whether the run needs DeepSpeed.

    A run that may have several workers needs it also with one, so that its checkpoints are all of one kind.
    """
    return max(size, recipe.parallel.workers[1]) > 1 or recipe.parallel.zero_stage > 0


def make_engine(recipe: Recipe, model: SpanModel, device: torch.device, size: int, universal: bool) -> Engine:
    """Returns the engine of one of `size` processes. `universal`: it will load a universal checkpoint.

    Raises: UserError if DeepSpeed is needed and not installed.
    """
    model.to(device)
    if device.type == "cpu":
        prepare_cpu_training(model)
    if recipe.parallel.gradient_checkpointing:
        for encoder in model.encoders():
            encoder.gradient_checkpointing_enable()  # type: ignore[operator]
    if needs_deepspeed(recipe, size):
        return DeepSpeedEngine(recipe, model, universal)
    return PlainEngine(recipe, model)


class PlainEngine:
    def __init__(self, recipe: Recipe, model: SpanModel) -> None:
        self.forward: nn.Module = model
        self._model = model
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

    def whole_model(self) -> SpanModel:
        return self._model

    def save(self, directory: Path) -> None:
        # Weights that are not trained are those that the run begins with.
        frozen = {name for name, weight in self._model.named_parameters() if not weight.requires_grad}
        weights = {name: tensor for name, tensor in self._model.state_dict().items() if name not in frozen}
        state = {"model": weights, "optimiser": self._optimiser.state_dict()}
        torch.save(state, directory / f"{_TAG}.pt")

    def load(self, directory: Path) -> None:
        if not (directory / f"{_TAG}.pt").is_file():
            raise ShortfallError(
                f"The checkpoint {directory} was not written by one process alone; go on with as many as it had."
            )
        state = torch.load(directory / f"{_TAG}.pt", map_location="cpu", weights_only=True)
        self._model.load_state_dict({**self._model.state_dict(), **state["model"]})
        self._optimiser.load_state_dict(state["optimiser"])


class DeepSpeedEngine:
    """Backward passes only accumulate. `step` reduces the gradients once, however many parts a batch has."""

    def __init__(self, recipe: Recipe, model: SpanModel, universal: bool) -> None:
        deepspeed = _deepspeed()
        offload = recipe.parallel.offload == "cpu"
        config = {
            "train_micro_batch_size_per_gpu": 1,  # the trainer weighs the texts itself
            "managed_gradient_accumulation": False,
            "gradient_clipping": recipe.optim.max_norm,
            "zero_optimization": {
                "stage": recipe.parallel.zero_stage,
                "overlap_comm": False,  # with True, DeepSpeed would reduce in each backward pass
                **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
            },
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW runs on the CPU too, and needs no compiler
            "checkpoint": {"load_universal": universal},
            "steps_per_print": sys.maxsize,
        }
        self._gathered = deepspeed.zero.GatheredParameters
        self._stage = recipe.parallel.zero_stage
        self._model = model
        self._lora = recipe.model.lora
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

    def whole_model(self) -> SpanModel | None:
        if self._stage < 3:
            return self._model
        # Return a copy, because the sharded model frees its weights in each forward pass.
        with self._gathered(list(self._model.parameters())):
            if dist.get_rank():
                return None
            weights = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        copy = like(self._model, self._lora)
        copy.load_state_dict(weights)
        return copy.to(next(iter(weights.values())).device)

    def save(self, directory: Path) -> None:
        # The conversion to a universal checkpoint looks for this key.
        self._engine.save_checkpoint(
            str(directory),
            tag=_TAG,
            client_state={"universal_checkpoint_info": {}},
            exclude_frozen_parameters=self._lora is not None,
        )

    def load(self, directory: Path) -> None:
        # DeepSpeed unpickles. It reads only what this run wrote into its own directory.
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG, load_module_strict=self._lora is None)
        if path is None:
            raise ShortfallError(
                f"The checkpoint {directory} holds nothing of DeepSpeed's; a run begun in one process goes on in one."
            )


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
    # It calls functions that newer releases of PyTorch rename, and each process would warn many times.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile it, which fails without a compiler. Gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def make_universal(checkpoint: Path, output: Path) -> None:
    """Converts a checkpoint of DeepSpeed into one that any number of processes can load (Lian et al. 2024).

    Raises: ShortfallError if it cannot be converted.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
    command += ["--num_merge_workers", "1", "--input_folder", str(checkpoint / _TAG), "--output_folder"]
    done = subprocess.run([*command, str(output / _TAG)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ShortfallError(f"The checkpoint {checkpoint} cannot be converted for another number of workers ({last}).")
