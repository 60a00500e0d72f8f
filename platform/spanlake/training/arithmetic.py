"""Counts the arithmetic that a training step needs, and measures how fast a device does such arithmetic.

The quotient of the two is the FLOP utilisation of a run (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from spanlake.modeling.model import SpanModel, encoder_output_width
from spanlake.modeling.tokens import Batch

_SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
_PRODUCTS = 5


def step_flops(model: SpanModel, batch: Batch) -> float:
    """Returns the floating-point operations of the forward and the backward pass over a batch, without its padding.

    The count has the matrix products. A product takes two operations per weight and row in the forward pass, and four
    in the backward pass, or two for a weight that is not trained.
    """
    lengths = batch.attention_mask.sum(1).double()
    words, types = sum(batch.word_counts), sum(batch.type_counts)
    shape: Any = model.encoder.config
    attended = 2 * shape.num_hidden_layers * encoder_output_width(model.encoder) * float(lengths.square().sum())
    projected = _products(model.projection, words + types) + _products(model.lstm, words)
    spans: Any = model.spans
    head = _products(model.types, types) + 6 * spans.multiplications(batch.word_counts, batch.type_counts)
    return float(6 * attended + _products(model.encoder, float(lengths.sum())) + projected + head)


def _products(module: nn.Module | None, rows: float) -> float:
    """Returns the operations of a module that multiplies each of its matrices with as many rows."""
    if module is None:
        return 0.0
    looked_up = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices = [weight for weight in module.parameters() if weight.dim() == 2 and id(weight) not in looked_up]
    return rows * sum((6 if weight.requires_grad else 4) * weight.numel() for weight in matrices)


def matrix_rate(device: torch.device, precision: torch.dtype) -> float:
    """Returns how many floating-point operations this process does per second in a product of large square matrices."""
    side = _SIDES[device.type]
    matrix = torch.ones(side, side, device=device, dtype=precision)
    taken = []
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        taken.append(time.perf_counter() - began)
    return 2 * side**3 / min(taken)
