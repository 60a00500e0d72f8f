"""Counts the arithmetic that a training step needs, and measures how fast a device does such arithmetic.

The quotient of the two is the FLOP utilisation of a run (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spanlake.modeling.label_tokens import LabelledBatch
from spanlake.modeling.model import SpanModel, encoder_output_width
from spanlake.modeling.tokens import Batch

_SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
_PRODUCTS = 5


def step_flops(model: SpanModel, batch: Batch) -> float:
    """Returns the floating-point operations of the forward and the backward pass over a batch, without its padding.

    The count has the matrix products. A product takes two operations per weight and row in the forward pass, and four
    in the backward pass, or two for a weight that is not trained.
    """
    words, types = sum(batch.word_counts), sum(batch.type_counts)
    spans: Any = model.spans
    of_words = _read(model.encoder, batch.attention_mask) + _products(model.projection, words)
    if isinstance(batch, LabelledBatch):
        labels: Any = model.labels
        types = len(batch.label_ids)
        of_types = _read(labels.encoder, batch.label_mask) + _products(labels.projection, types)
    else:
        of_types = _products(model.projection, types)
    head = 6 * spans.multiplications(batch.word_counts, batch.type_counts)
    return float(of_words + _products(model.lstm, words) + of_types + _products(model.types, types) + head)


def _read(encoder: Any, mask: torch.Tensor) -> float:
    """Returns the operations of an encoder over texts with this attention mask."""
    lengths, shape = mask.sum(1).double(), encoder.config
    attended = 2 * shape.num_hidden_layers * encoder_output_width(encoder) * float(lengths.square().sum())
    return 6 * attended + _products(encoder, float(lengths.sum()))


def _products(module: nn.Module | None, rows: float) -> float:
    """Returns the operations of a module that multiplies each of its matrices with as many rows."""
    if module is None:
        return 0.0
    looked_up = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    trained = [(weight.requires_grad, _shape(weight)) for weight in module.parameters() if id(weight) not in looked_up]
    return rows * sum((6 if each else 4) * math.prod(shape) for each, shape in trained if len(shape) == 2)


def _shape(weight: torch.Tensor) -> Sequence[int]:
    """Returns the shape of the whole weight. ZeRO stage 3 empties a weight that is not in use."""
    shape: Sequence[int] = getattr(weight, "ds_shape", weight.shape)
    return shape


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
