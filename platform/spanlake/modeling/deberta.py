"""DeBERTa's attention without a number for each pair of sub-words, for inference on a GPU.

The transformers library gathers the terms of relative position into tensors [B, A, T, T], three to a layer. The kernel
gathers them where it uses them. If it fails, the code of the transformers library takes its place.

Shapes: B texts, T sub-words, A heads, d width of a head, H width, P distances that occur.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from spanlake.modeling.kernels.fallback import WithFallback
from spanlake.modeling.transfer import moved


def use_lean_attention(encoder: Any, load: Callable[[], Callable[..., torch.Tensor]] | None = None) -> None:
    """Makes a `DebertaV2Model` of the transformers library use the kernel. Its weights keep their names.

    `load` returns what takes the kernel's place in tests.
    """
    if encoder.config.relative_attention:
        attend = WithFallback("The kernel of DeBERTa's attention", load or load_lean, _plain)
        encoder.encoder.__class__ = _LeanEncoder
        for layer in encoder.encoder.layer:
            layer.attention.self.__class__ = _LeanAttention
            layer.attention.self.attend = attend


class _LeanEncoder(DebertaV2Encoder):
    """Leaves the mask [B, T] as it is, and makes no matrix of distances."""

    def get_attention_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        return attention_mask

    def get_rel_pos(self, *_: Any, **__: Any) -> None:
        return None


class _LeanAttention(DisentangledSelfAttention):
    attend: WithFallback[..., torch.Tensor]

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, *_: Any, **others: Any) -> Any:
        """Returns [B, T, H], and None in place of probabilities. attention_mask: [B, T]."""
        return self.attend(self, hidden_states, attention_mask, others["rel_embeddings"]), None


def _plain(
    module: DisentangledSelfAttention, hidden: torch.Tensor, mask: torch.Tensor, embeddings: torch.Tensor
) -> torch.Tensor:
    pairs = mask[:, None, None] * mask[:, None, :, None]
    gathered: torch.Tensor = DisentangledSelfAttention.forward(module, hidden, pairs, rel_embeddings=embeddings)[0]
    return gathered


def load_lean() -> Callable[..., torch.Tensor]:
    from spanlake.modeling.kernels.disentangled import attend

    def lean(
        module: DisentangledSelfAttention, hidden: torch.Tensor, mask: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        query, key, value = (
            _by_head(module, project(hidden)) for project in (module.query_proj, module.key_proj, module.value_proj)
        )
        size = module.pos_ebd_size
        first, stop, places = _occurring(
            size, module.position_buckets, module.max_relative_positions, hidden.shape[1], hidden.device
        )
        occurring = embeddings[first:stop]
        of_query = of_key = None
        if "c2p" in module.pos_att_type:
            project = module.key_proj if module.share_att_key else module.pos_key_proj
            of_query = torch.einsum("btad,pad->btap", query, _by_head(module, project(occurring)))
        if "p2c" in module.pos_att_type:
            project = module.query_proj if module.share_att_key else module.pos_query_proj
            of_key = torch.einsum("btad,pad->btap", key, _by_head(module, project(occurring)))
        lengths = mask.sum(1, dtype=torch.int32)
        return attend(query, key, value, of_query, of_key, places, lengths).flatten(2)

    return lean


def _by_head(module: DisentangledSelfAttention, vectors: torch.Tensor) -> torch.Tensor:
    return vectors.unflatten(-1, (module.num_attention_heads, -1))


@lru_cache(maxsize=256)
def _occurring(size: int, buckets: int, most: int, length: int, device: torch.device) -> tuple[int, int, torch.Tensor]:
    """Returns which embeddings of distances texts of `length` sub-words need, from the first to before `stop`, and for
    each distance from 1 - T to T - 1 the place of its embedding among these, int32 [2T - 1].

    size, buckets, most: embeddings on each side, buckets of distances (0 or less: none), and the largest distance.
    """
    distances = torch.arange(1 - length, length)
    if buckets > 0:
        distances = make_log_bucket_position(distances, buckets, most).long()
    at = (distances + size).clamp(0, 2 * size - 1)
    first, stop = int(at.min()), int(at.max()) + 1
    return first, stop, moved((at - first).int(), device)
