"""Scores each word as the start, the end and the inside of an entity of each type, as token-level checkpoints do.

A word x and a type q have the logits `W2 act(W1 [A x ; A' q ; B x * B' q] + b1) + b2`, one for each part. W1 is
factored: its products with `A x` are computed once per word, and those with `A' q` once per type.

Shapes: B texts, W words, C types, D width of a vector, F width inside the joint layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

PARTS = 3  # start, end, inside
# Elements of [texts, W, C, F] in one chunk.
_CHUNK = 1 << 24


class TokenHead(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Linear(width, 2 * width)
        self.kind = nn.Linear(width, 2 * width)
        self.joined = nn.Linear(3 * width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(4 * width, PARTS)

    def multiplications(self, word_counts: list[int], type_counts: list[int]) -> float:
        """Returns the multiplications of a forward pass over texts with so many words and types."""
        words, types = sum(word_counts), sum(type_counts)
        pairs = sum(count * asked for count, asked in zip(word_counts, type_counts, strict=True))
        joint = self.joined.in_features // 3 * self.joined.out_features  # for words, for types and for their products
        each = self.word.in_features * self.word.out_features + joint
        return (words + types) * each + pairs * (joint + self.out.in_features * PARTS)

    def forward(self, words_BWD: torch.Tensor, types_BCD: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [B, W, 3, C] of start, end and inside. Ignore those of padding."""
        word, word_factor = self.word(words_BWD).chunk(2, dim=-1)
        kind, kind_factor = self.kind(types_BCD).chunk(2, dim=-1)
        by_word, by_type, by_product = self.joined.weight.chunk(3, dim=1)
        of_word = nn.functional.linear(word, by_word, self.joined.bias).unsqueeze(2)
        of_type = nn.functional.linear(kind, by_type).unsqueeze(1)
        words, types, features = of_word.shape[1], of_type.shape[2], of_word.shape[3]
        at_once = max(1, _CHUNK // (len(words_BWD) * words * features))  # types
        chunks = []
        for first in range(0, types, at_once):
            part = slice(first, first + at_once)
            product = nn.functional.linear(word_factor.unsqueeze(2) * kind_factor[:, None, part], by_product)
            inner = torch.relu(self.dropout(of_word + of_type[:, :, part] + product))
            chunks.append(self.out(inner).float())
        return torch.cat(chunks, dim=2).transpose(2, 3)

    def by_types(
        self, words_BWD: torch.Tensor, types_CD: torch.Tensor, most: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields float32 logits [B, W, 3, c] as `SpanHead.by_types` does."""
        batch, words, _ = words_BWD.shape
        at_once = max(1, most // (batch * words * PARTS))
        for first in range(0, len(types_CD), at_once):
            yield first, self(words_BWD, types_CD[first : first + at_once].expand(batch, -1, -1))
