"""AdamW with one learning rate for the encoder and one for the rest, and how they change over a run."""

from __future__ import annotations

import math
from typing import Any

import torch

from spanlake.modeling.model import SpanModel
from spanlake.training.recipe import OptimSection, ScheduleSection


def parameter_groups(model: SpanModel, optim: OptimSection) -> list[dict[str, Any]]:
    """Groups of the weights to train, for an AdamW of any make, by highest learning rate and weight decay.

    Biases and the scales of layer norms are not decayed: towards zero they are no simpler.
    """
    encoder = {id(parameter) for part in model.encoders() for parameter in part.parameters()}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if id(parameter) in encoder else "head"
        groups.setdefault((part, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "name": part if decayed else f"{part}, not decayed",
            "params": parameters,
            "lr": optim.encoder_lr if part == "encoder" else optim.head_lr,
            "weight_decay": optim.weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in groups.items()
    ]


def adamw(model: SpanModel, optim: OptimSection) -> torch.optim.AdamW:
    """PyTorch's own, which updates each group in one pass over memory."""
    return torch.optim.AdamW(parameter_groups(model, optim), fused=True)


def rate_at(step: int, schedule: ScheduleSection) -> float:
    """The share of the highest learning rate after `step` steps: a linear rise over `schedule.warmup` of them, then the
    fall that `schedule.decay` names, to zero at the last."""
    rising = max(1, int(schedule.steps * schedule.warmup))
    if step < rising:
        return (step + 1) / rising
    gone = min(1.0, (step - rising) / max(1, schedule.steps - rising))
    if schedule.decay == "constant":
        return 1.0
    return 1 - gone if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
