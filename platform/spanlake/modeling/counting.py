"""The parts of GLiNER2 that other models do not have: the count of entities, and type vectors that depend on it.

GLiNER2 predicts how often the asked structure occurs in a text, and then makes one set of type vectors for each
occurrence. For entities it reads the first set only, and finds nothing where it predicts that nothing occurs.

Shapes: B texts, T sub-words, C types, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

CountingKind = Literal["count_lstm", "count_lstm_v2", "count_lstm_moe"]
COUNTING_KINDS: tuple[CountingKind, ...] = get_args(CountingKind)
_COUNTS = 20  # from 0 to 19
_NOTHING = -1e4  # the logit of a span where nothing occurs; its score is 0 in float32
_EXPERTS = 4


class Counting(nn.Module):
    """Counts the entities of a text, and makes the type vectors of the first occurrence."""

    def __init__(self, kind: CountingKind, width: int) -> None:
        super().__init__()
        self.count = _feed_forward(width, [2 * width], _COUNTS)
        self.step = nn.Embedding(_COUNTS, width)
        self.cell = nn.GRUCell(width, width)
        parts = {"count_lstm": _Joined, "count_lstm_v2": _Attended, "count_lstm_moe": _Mixed}
        self.out: nn.Module = parts[kind](width)

    def types(self, types_BCD: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Returns the vectors of the types, [B, C, D]. `counts` says how many of a text's types are no padding."""
        batch, types, width = types_BCD.shape
        step = self.step.weight[0].expand(batch * types, width)
        state = self.cell(step, types_BCD.reshape(-1, width)).view_as(types_BCD)
        padding = torch.arange(types, device=state.device) >= torch.tensor(counts, device=state.device).view(-1, 1)
        vectors: torch.Tensor = self.out(state, types_BCD, padding)
        return vectors

    def gated(self, logits: torch.Tensor, counters_BD: torch.Tensor) -> torch.Tensor:
        """Returns the logits, low enough for a score of 0 in a text that has no entities by its counter's vector."""
        nothing = self.count(counters_BD).argmax(dim=-1) == 0
        return logits.masked_fill(nothing.view(-1, 1, 1, 1), _NOTHING)


class _Joined(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projector = _feed_forward(2 * width, [4 * width], width)

    def forward(self, state: torch.Tensor, types: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.projector(torch.cat([state, types], dim=-1))
        return vectors


class _Attended(nn.Module):
    """The types of a text attend to each other, in fewer dimensions."""

    def __init__(self, width: int, inner: int = 128) -> None:
        super().__init__()
        self.in_projector = nn.Linear(width, inner)
        layer = nn.TransformerEncoderLayer(inner, nhead=4, dim_feedforward=2 * inner, dropout=0.1, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.out_projector = _feed_forward(inner + width, [width, width], width)

    def forward(self, state: torch.Tensor, types: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        both = state + types
        inner = self.transformer(self.in_projector(both), src_key_padding_mask=padding)
        vectors: torch.Tensor = self.out_projector(torch.cat([inner, both], dim=-1))
        return vectors


class _Mixed(nn.Module):
    """Experts, mixed by gates that depend on the type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.w1 = nn.Parameter(torch.empty(_EXPERTS, width, inner).normal_(std=0.02))
        self.b1 = nn.Parameter(torch.zeros(_EXPERTS, inner))
        self.w2 = nn.Parameter(torch.empty(_EXPERTS, inner, width).normal_(std=0.02))
        self.b2 = nn.Parameter(torch.zeros(_EXPERTS, width))
        self.router = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, _EXPERTS), nn.Softmax(dim=-1))

    def forward(self, state: torch.Tensor, types: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.gelu(torch.einsum("bcd,edf->bcef", state, self.w1) + self.b1)
        each = torch.einsum("bcef,efd->bced", inner, self.w2) + self.b2
        return (self.router(state).unsqueeze(-1) * each).sum(dim=2)


def _feed_forward(width: int, inner: Sequence[int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in inner:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out))
