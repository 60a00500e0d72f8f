"""An average of a model's weights over the steps of a run, which is steadier than the weights of any one step."""

from __future__ import annotations

from pathlib import Path

import torch

from spanlake.modeling.model import SpanModel
from spanlake.training.lora import like
from spanlake.training.recipe import LoraSection

_FILE = "average.pt"  # in a checkpoint


class Average:
    """After each step, the average keeps a share of `decay` and takes the rest from the weights."""

    def __init__(self, model: SpanModel, decay: float, lora: LoraSection | None = None) -> None:
        """`lora`: of the model's adapter. The weights that are not trained are their own average."""
        self._decay = decay
        self._model = model
        self._lora = lora
        self._weights = {name: weight.detach().clone() for name, weight in self._named()}

    def update(self, step: int) -> None:
        """`step` counts from 1. The first steps move the average further, so that it forgets where the run began."""
        taken = 1 - min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            weights: list[torch.Tensor] = [weight for _, weight in self._named()]
            torch._foreach_lerp_(list(self._weights.values()), weights, taken)

    def model(self) -> SpanModel:
        """Returns a copy of the model with the averaged weights."""
        copy = like(self._model, self._lora)
        copy.load_state_dict({**self._model.state_dict(), **self._weights})
        return copy.to(next(iter(self._weights.values())).device)

    def save(self, directory: Path) -> None:
        torch.save(self._weights, directory / _FILE)

    def load(self, directory: Path) -> None:
        for name, weight in torch.load(directory / _FILE, map_location="cpu", weights_only=True).items():
            self._weights[name].copy_(weight)

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = self._model.named_parameters(remove_duplicate=False)
        return [(name, weight) for name, weight in named if weight.requires_grad]
