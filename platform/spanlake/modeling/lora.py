"""Low-rank changes of a model's weights (LoRA; Hu et al. 2021): W + scale · B A.

Shapes: O outputs and I inputs of a linear layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spanlake.errors import PackageError, shown

DOWN, UP = "lora_A", "lora_B"  # what the names of the tensors A [R, I] and B [O, R] end in


@dataclass(frozen=True)
class Adapter:
    """What an adapter's tensors belong to."""

    base: str  # where the model below the adapter is: mini, a directory, a URI, or a Hub id
    base_fingerprint: str
    rank: int
    scale: float

    @classmethod
    def from_dict(cls, values: Any) -> Adapter:
        """Raises ValueError for values that describe no adapter."""
        fields: dict[str, Any] = {"base": str, "base_fingerprint": str, "rank": int, "scale": (int, float)}
        if not isinstance(values, dict) or {*values} != {*fields}:
            raise ValueError(f"adapter is {shown(values)}, which must have {', '.join(fields)}")
        for name, kind in fields.items():
            value = values[name]
            if not isinstance(value, kind) or isinstance(value, bool) or not (kind is str or math.isfinite(value)):
                raise ValueError(f"adapter.{name} is {shown(value)}")
        return cls(**values)


def changed(
    weights: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor], scale: float, source: str
) -> dict[str, torch.Tensor]:
    """Returns those of a model's weights that an adapter changes, with the changes made.

    The product of `NAME.lora_B` and `NAME.lora_A`, times `scale`, is added to `NAME.weight`. Any other tensor of
    `changes` replaces the weight of its name. Raises `PackageError`, which names `source`, for a tensor that fits no
    weight.
    """
    result: dict[str, torch.Tensor] = {}
    for name, tensor in changes.items():
        stem, _, kind = name.rpartition(".")
        if kind == UP and f"{stem}.{DOWN}" in changes:
            continue  # it belongs to A
        target, new = name, tensor
        if kind == DOWN:
            target, new = f"{stem}.weight", _product(tensor, changes.get(f"{stem}.{UP}"), scale)
        old = weights.get(target)
        if old is None or new.shape != old.shape:
            raise PackageError(
                f"The weights of {source} do not fit the model below it: {name} has no counterpart of its shape; fetch "
                "the package again."
            )
        result[target] = old + new if kind == DOWN else new
    return result


def _product(down: torch.Tensor, up: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Returns scale · B A [O, I]; an empty tensor where the two do not belong together."""
    if up is None or down.dim() != 2 or up.dim() != 2 or up.shape[1] != down.shape[0]:
        return down.new_empty(0)
    return scale * (up @ down)
