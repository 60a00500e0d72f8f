"""A Triton kernel for the attention of DeBERTa (He et al. 2021, section 3), for inference.

The score of a query and a key adds three products: of the query and the key, of the query and the embedding of their
distance, and of the key and that embedding. The last two are computed for the distances that occur, [B, T, P] by head,
and each program gathers those of its pairs: no number is written for each pair of sub-words.

Shapes: B texts, T sub-words, A heads, d width of a head, P distances.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK_QUERIES = 64
_BLOCK_KEYS = 64


@triton.jit
def _kernel(
    query,
    key,
    value,
    query_places,
    key_places,
    places,
    lengths,
    output,
    length,
    heads,
    distances,
    scale,
    HAS_QUERY_PLACES: tl.constexpr,
    HAS_KEY_PLACES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    text = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    count = tl.load(lengths + text)
    at_query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= count:
        return
    inside = at_query < count
    feature = tl.arange(0, BLOCK_D)
    known = feature < WIDTH
    row = (text * length + at_query) * heads + head  # of [B, T, A]
    q = tl.load(query + row[:, None] * WIDTH + feature[None, :], mask=inside[:, None] & known[None, :], other=0.0)
    best = tl.full((BLOCK_M,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    gathered = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for begin in range(0, count, BLOCK_N):
        at_key = begin + tl.arange(0, BLOCK_N)
        present = at_key < count
        column = (text * length + at_key) * heads + head
        mask = present[:, None] & known[None, :]
        k = tl.load(key + column[:, None] * WIDTH + feature[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        both = inside[:, None] & present[None, :]
        place = tl.load(places + (at_query[:, None] - at_key[None, :] + length - 1), mask=both, other=0)
        if HAS_QUERY_PLACES:
            scores += tl.load(query_places + row[:, None] * distances + place, mask=both, other=0.0).to(tl.float32)
        if HAS_KEY_PLACES:
            scores += tl.load(key_places + column[None, :] * distances + place, mask=both, other=0.0).to(tl.float32)
        scores = tl.where(present[None, :], scores * scale, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(best - higher)
        total = total * kept + tl.sum(weights, 1)
        v = tl.load(value + column[:, None] * WIDTH + feature[None, :], mask=mask, other=0.0)
        gathered = gathered * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = higher
    result = (gathered / total[:, None]).to(output.dtype.element_ty)
    tl.store(output + row[:, None] * WIDTH + feature[None, :], result, mask=inside[:, None] & known[None, :])


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_places: torch.Tensor | None,
    key_places: torch.Tensor | None,
    places: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Returns [B, T, A, d], 0 past a text's end.

    query, key, value: [B, T, A, d]; query_places, key_places: [B, T, A, P], their products with the embeddings of the
    distances, or None; places: int32 [2T - 1], the place among P of each distance from 1 - T to T - 1; lengths: int32
    [B], sub-words of each text.
    """
    batch, length, heads, width = query.shape
    terms = 1 + (query_places is not None) + (key_places is not None)
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    products = [value if each is None else each.contiguous() for each in (query_places, key_places)]
    distances = next((each.shape[-1] for each in (query_places, key_places) if each is not None), 0)
    kernel: Any = _kernel[(triton.cdiv(length, _BLOCK_QUERIES), batch * heads)]
    kernel(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *products,
        places,
        lengths,
        output,
        length,
        heads,
        distances,
        1 / math.sqrt(width * terms),
        HAS_QUERY_PLACES=query_places is not None,
        HAS_KEY_PLACES=key_places is not None,
        WIDTH=width,
        BLOCK_D=max(16, triton.next_power_of_2(width)),
        BLOCK_M=_BLOCK_QUERIES,
        BLOCK_N=_BLOCK_KEYS,
    )
    return output
