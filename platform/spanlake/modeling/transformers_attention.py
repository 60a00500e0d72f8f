"""Gives encoders of the transformers library the attention of this package for training on a CPU.

Shapes: B texts, A heads, T sub-words in the longest, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spanlake.modeling.attention import Attention

NAME = "spanlake_cpu"


def use_cpu_attention(encoder: nn.Module) -> None:
    """Changes the attention of an encoder of the transformers library. Another encoder keeps its own."""
    if isinstance(encoder, PreTrainedModel):
        encoder.set_attn_implementation(NAME)


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
    texts, heads, length, width = query.shape
    counts = [length] * texts if attention_mask is None else attention_mask[:, 0, 0].sum(-1).tolist()
    scaling = width**-0.5 if scaling is None else scaling
    by_head = [tensor.transpose(0, 1).reshape(heads, -1, width) for tensor in (query * scaling, key, value)]
    spans = [(text * length, text * length + count) for text, count in enumerate(counts)]
    output: torch.Tensor = Attention.apply(*by_head, spans, dropout)
    return output.view(heads, texts, length, width).permute(1, 2, 0, 3).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
