"""Attention for training on a CPU: one text at a time, with dropout of the probabilities.

PyTorch's fused kernel has no dropout on a CPU, and its backward pass in bfloat16 takes twice as long as in float32.
This module keeps the matrix of a text's scores for the backward pass. Its memory grows with the square of a text's
sub-words, which a window bounds. In bfloat16 the scores are rounded before the softmax, as in transformers' eager
attention.

Shapes: B texts, A heads, T sub-words in the longest, t in one, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spanlake.modeling.dropout import dropped, generator, rounded

NAME = "spanlake_cpu"
# Encoders with plain attention: every sub-word sees every other one of its text, and positions are part of the input.
PLAIN = ("albert", "bert", "camembert", "electra", "roberta", "xlm-roberta")


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Returns [B, T, A, d], 0 past a text's end, from query, key and value [B, A, T, d].

    The transformers library sets the arguments. `attention_mask` [B, 1, T, T] is True where both positions hold
    sub-words of the text; a text's sub-words come first in its row.
    """
    fused = query.dtype == torch.float32 and not dropout
    if fused or not query.is_cpu or not torch.is_grad_enabled():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    texts, _, length, width = query.shape
    counts = [length] * texts if attention_mask is None else attention_mask[:, 0, 0].sum(-1).tolist()
    scaling = width**-0.5 if scaling is None else scaling
    by_head = [tensor.contiguous() for tensor in (query * scaling, key, value)]  # matrix products are faster on these
    output: torch.Tensor = _Attention.apply(*by_head, counts, dropout)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        counts: list[int],
        rate: float,
    ) -> torch.Tensor:
        output = torch.zeros_like(query)
        rng = generator() if rate else None
        ctx.keep_scale = 1 / (1 - rounded(rate))
        ctx.counts = counts
        kept: list[torch.Tensor] = []
        probabilities: list[torch.Tensor] = []
        for text, count in enumerate(counts):
            q, k, v = (tensor[text, :, :count] for tensor in (query, key, value))
            weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
            probabilities.append(weights)
            if rng is not None:
                kept.append(dropped(weights.numel(), rate, rng).bitwise_not_().view(weights.shape))
                weights = _masked(weights, kept[-1])
            torch.mul(torch.bmm(weights, v), ctx.keep_scale, out=output[text, :, :count])
        ctx.save_for_backward(query, key, value, output, *probabilities, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *saved = ctx.saved_tensors
        probabilities, kept = saved[: len(ctx.counts)], saved[len(ctx.counts) :]
        by_query, by_key, by_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        by_output = gradients[0].contiguous()
        precise = torch.promote_types(query.dtype, torch.float32)
        for text, count in enumerate(ctx.counts):
            q, k, v, o, gradient = (tensor[text, :, :count] for tensor in (query, key, value, output, by_output))
            weights = probabilities[text]
            # The softmax's gradient needs sum_j p_ij dp_ij, which equals the product of the output and its gradient.
            mean = (o.to(precise) * gradient).sum(-1, keepdim=True).to(o.dtype)
            gradient = gradient * ctx.keep_scale
            by_weights = torch.bmm(gradient, v.transpose(1, 2))
            used = weights
            if kept:
                by_weights, used = _masked(by_weights, kept[text]), _masked(weights, kept[text])
            by_value[text, :, :count] = torch.bmm(used.transpose(1, 2), gradient)
            by_scores = by_weights.sub_(mean).mul_(weights)
            by_query[text, :, :count] = torch.bmm(by_scores, k)
            by_key[text, :, :count] = torch.bmm(by_scores.transpose(1, 2), q)
        return by_query, by_key, by_value, None, None


def _masked(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns the values where `keep` (int16) is -1, and 0 where it is 0."""
    if values.element_size() == 2:
        return torch.bitwise_and(values.view(torch.int16), keep).view(values.dtype)
    return values * keep.neg()
