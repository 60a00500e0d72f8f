"""A Triton kernel that scores spans and keeps those above their limits. It writes nothing else.

A program takes BLOCK_S spans (word and width) of one row and BLOCK_C types. It sums the parts of the first and the last
word, and multiplies the sums with the folded types, BLOCK_F features at a time: neither spans x F nor spans x C numbers
are written. Programs take turns at the counter of the found spans, so their order is not defined.

Shapes: B rows, W words, K span width, C types, D width of a vector, F width inside the joint layer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from spanlake.modeling.found import Found, Scale, Wanted
from spanlake.modeling.span_head import SpanHead

_BLOCK_SPANS = 64
_BLOCK_FEATURES = 64
_MOST_TYPES = 64  # in one program
_LEAST = 16  # the smallest side of a block that tl.dot takes


@triton.jit
def _kernel(
    start,
    end,
    columns,
    bias,
    own,
    limits,
    header,
    places,
    scores,
    words,
    types,
    features,
    room,
    scale,
    shift,
    WIDTH: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    span = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    kind = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    word, extra = span // WIDTH, span % WIDTH
    first = tl.load(own + row * 4)
    own_from = tl.load(own + row * 4 + 1)
    own_to = tl.load(own + row * 4 + 2)
    count = tl.load(own + row * 4 + 3)
    centre = 2 * (first + word) + extra
    real = (word + extra < count) & (own_from <= centre) & (centre < own_to)
    start_row = start + (row * words + word[:, None]) * features
    end_row = end + (row * words + (word + extra)[:, None]) * features
    column = columns + (row * types + kind[None, :]) * features
    total = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    for begin in range(0, features, BLOCK_F):
        feature = begin + tl.arange(0, BLOCK_F)
        inside = real[:, None] & (feature[None, :] < features)
        sums = tl.load(start_row + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += tl.load(end_row + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        if RELU:
            sums = tl.maximum(sums, 0.0)
        known = (feature[:, None] < features) & (kind[None, :] < types)
        weights = tl.load(column + feature[:, None], mask=known, other=0.0)
        total += tl.dot(sums.to(weights.dtype), weights, input_precision="ieee")
    at_kind = row * types + kind
    if RELU:
        total += tl.load(bias + at_kind, mask=kind < types, other=0.0).to(tl.float32)[None, :]
    score = 1.0 / (1.0 + tl.exp(-(total * scale + shift)))
    limit = tl.load(limits + at_kind, mask=kind < types, other=1.0)
    kept = (real[:, None] & (kind[None, :] < types) & (score > limit[None, :])).reshape(BLOCK_S * BLOCK_C)
    one = kept.to(tl.int32)
    before = tl.cumsum(one, 0) - one
    place = ((row * words * WIDTH + span[:, None]) * types + kind[None, :]).reshape(BLOCK_S * BLOCK_C)
    # `header` is the lower half of a number of 64 bits.
    target = tl.atomic_add(header, tl.sum(one, 0)) + before
    kept = kept & (target < room)
    tl.store(places + target, place, mask=kept)
    tl.store(scores + target, score.reshape(BLOCK_S * BLOCK_C), mask=kept)


def find_spans(
    head: SpanHead, words_BWD: torch.Tensor, types_BCD: torch.Tensor, wanted: Wanted, scale: Scale, room: int
) -> Found:
    """Returns what `found.find_spans` returns, in another order."""
    start, end = (part.contiguous() for part in head.word_parts(words_BWD))
    rows, bias = head.folded(types_BCD)
    rows = rows.contiguous()
    batch, words, features = start.shape
    types = rows.shape[1]
    found = Found.empty(room, start.device)
    if start.dtype == torch.float16:
        found.is_number(start, end, rows)
    block = min(_MOST_TYPES, max(_LEAST, triton.next_power_of_2(types)))
    grid = (triton.cdiv(words * head.max_width, _BLOCK_SPANS), batch, triton.cdiv(types, block))
    kernel: Any = _kernel[grid]
    kernel(
        start,
        end,
        rows,
        rows if bias is None else bias.contiguous(),
        wanted.own,
        wanted.limits,
        found.header.view(torch.int32),
        found.places,
        found.scores,
        words,
        types,
        features,
        room,
        scale.scale,
        scale.shift,
        WIDTH=head.max_width,
        RELU=bias is not None,
        BLOCK_S=_BLOCK_SPANS,
        BLOCK_C=block,
        BLOCK_F=_BLOCK_FEATURES,
    )
    return found
