"""Dropout with random numbers that are cheap on a CPU.

PyTorch draws one Bernoulli number per element, which on a CPU takes longer than the matrix products between two
dropouts. This module draws one seed from PyTorch's generator, so that `torch.manual_seed` and a restored generator
state repeat a step. An SFC64 generator turns the seed into 15 bits per element. Rates are therefore rounded to 1/32768.
Kept values are scaled by the rounded rate, so that their mean is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

_STEPS = 1 << 15


def rounded(rate: float) -> float:
    """Returns the rate that is applied in place of `rate`."""
    return round(rate * _STEPS) / _STEPS


def dropped(elements: int, rate: float, rng: np.random.SFC64) -> torch.Tensor:
    """Returns int16 [elements]: -1 where an element is dropped, 0 where it is kept."""
    drawn = rng.random_raw((elements + 3) // 4).view(np.int16)
    bits = torch.from_numpy(drawn)[:elements]
    return bits.bitwise_and_(_STEPS - 1).sub_(round(rate * _STEPS)).bitwise_right_shift_(15)


def generator() -> np.random.SFC64:
    """Returns a new generator, seeded from PyTorch's."""
    return np.random.SFC64(int(torch.randint(1 << 62, ())))


class Dropout(nn.Dropout):
    """Does what `torch.nn.Dropout` does, with cheap random numbers on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not 0 < rounded(self.p) < 1 or input.device.type != "cpu":
            return super().forward(input)
        output: torch.Tensor = _Dropped.apply(input, self.p)
        return output


def use_cheap_dropout(module: nn.Module) -> None:
    """Replaces every `torch.nn.Dropout` below `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, rate: float) -> torch.Tensor:
        keep = dropped(input.numel(), rate, generator()).bitwise_not_().view(input.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - rounded(rate))
        return _kept(input, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _kept(gradients[0], keep, ctx.scale), None


def _kept(values: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
    if values.element_size() == 2:
        bits = torch.bitwise_and(values.view(torch.int16), keep)
        return bits.view(values.dtype).mul_(scale)
    return (values * keep).mul_(-scale)  # `keep` is -1 for a kept value
