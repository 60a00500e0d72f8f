"""Attention for training on a CPU: one text at a time, with dropout of the probabilities.

PyTorch's fused kernel has no dropout on a CPU, and its backward pass in bfloat16 takes twice as long as in float32.
This module keeps the matrix of a text's scores for the backward pass. Its memory grows with the square of a text's
sub-words, which a window bounds. In bfloat16 the scores are rounded before the softmax, as in transformers' eager
attention.

Shapes: A heads, N sub-words of all texts, d width of a head.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch

from spanlake.modeling.dropout import dropped, generator, rounded

# Encoders with plain attention: every sub-word sees every other one of its text, and positions are part of the input.
PLAIN = ("albert", "bert", "camembert", "electra", "roberta", "xlm-roberta")


def attend_with_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], heads: int, dropout: float
) -> torch.Tensor:
    """Returns [N, A * d] from query, key and value [N, A * d] of texts that follow each other without padding.

    lengths: sub-words of each text.
    """
    width = query.shape[1] // heads
    by_head = [tensor.view(-1, heads, width).transpose(0, 1) for tensor in (query * width**-0.5, key, value)]
    contiguous = [tensor.contiguous() for tensor in by_head]  # matrix products are faster on these
    spans = list(pairwise(accumulate(lengths, initial=0)))
    output: torch.Tensor = Attention.apply(*contiguous, spans, dropout)
    return output.transpose(0, 1).reshape(query.shape)


class Attention(torch.autograd.Function):
    """Returns [A, N, d], 0 outside the texts, from query (scaled), key and value [A, N, d].

    spans: the first sub-word of each text, and the one after its last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: list[tuple[int, int]],
        rate: float,
    ) -> torch.Tensor:
        output = torch.zeros_like(query)
        rng = generator() if rate else None
        ctx.keep_scale = 1 / (1 - rounded(rate))
        ctx.spans = spans
        kept: list[torch.Tensor] = []
        probabilities: list[torch.Tensor] = []
        for first, stop in spans:
            q, k, v = (tensor[:, first:stop] for tensor in (query, key, value))
            weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
            probabilities.append(weights)
            if rng is not None:
                kept.append(dropped(weights.numel(), rate, rng).bitwise_not_().view(weights.shape))
                weights = _masked(weights, kept[-1])
            torch.mul(torch.bmm(weights, v), ctx.keep_scale, out=output[:, first:stop])
        ctx.save_for_backward(query, key, value, output, *probabilities, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *saved = ctx.saved_tensors
        probabilities, kept = saved[: len(ctx.spans)], saved[len(ctx.spans) :]
        by_query, by_key, by_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        by_output = gradients[0].contiguous()
        precise = torch.promote_types(query.dtype, torch.float32)
        for text, (first, stop) in enumerate(ctx.spans):
            q, k, v, o, gradient = (tensor[:, first:stop] for tensor in (query, key, value, output, by_output))
            weights = probabilities[text]
            # The softmax's gradient needs sum_j p_ij dp_ij, which equals the product of the output and its gradient.
            mean = (o.to(precise) * gradient).sum(-1, keepdim=True).to(o.dtype)
            gradient = gradient * ctx.keep_scale
            by_weights = torch.bmm(gradient, v.transpose(1, 2))
            used = weights
            if kept:
                by_weights, used = _masked(by_weights, kept[text]), _masked(weights, kept[text])
            by_value[:, first:stop] = torch.bmm(used.transpose(1, 2), gradient)
            by_scores = by_weights.sub_(mean).mul_(weights)
            by_query[:, first:stop] = torch.bmm(by_scores, k)
            by_key[:, first:stop] = torch.bmm(by_scores.transpose(1, 2), q)
        return by_query, by_key, by_value, None, None


def _masked(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns the values where `keep` (int16) is -1, and 0 where it is 0."""
    if values.element_size() == 2:
        return torch.bitwise_and(values.view(torch.int16), keep).view(values.dtype)
    return values * keep.neg()
