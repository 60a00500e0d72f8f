"""Computes one logit per span and type from word and type vectors (Zaratiana et al. 2023, equations 1 and 2).

A span (i, j), j = i + k, has the vector `W2 act(W1 [x_i ; y_j] + b1) + b2`. The dot product of that vector and a type q
is the span's logit for q. Both linear layers are factored, which changes only the order of the sums:

- `W1 [x_i ; y_j] = W_s x_i + W_e y_j`: computed per word and added per span, so no array of size spans x 2D is built;
- `(W2 r + b2) . q = r . (W2^T q) + b2 . q`: W2 is folded into the types, unless there are more than D types.

Shapes: B texts, W words, K span width, C types, D width of a vector, F width inside the joint layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from spanlake.modeling.config import SpanHeadKind

# Elements of [texts, W, F] in one chunk on a CPU. A chunk fits into a core's cache, because memory limits the speed.
# An accelerator works on the whole batch.
_CPU_CHUNK = 1 << 21


def feed_forward(width: int, inner: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, out))


class SpanHead(nn.Module):
    """Scores every span of up to K words against every type."""

    def __init__(self, kind: SpanHeadKind, width: int, max_width: int, dropout: float) -> None:
        super().__init__()
        self.max_width = max_width
        self.dropout = nn.Dropout(dropout)
        self.joined: nn.Linear | None = None
        if kind != "paper":
            inner = 4 * width if kind == "marker_v0" else 2 * width
            self.start = feed_forward(width, inner, width, dropout)
            self.end = feed_forward(width, inner, width, dropout)
        self.has_markers = kind != "paper"
        if kind == "marker":  # one joint layer, straight into the span vector
            self.out = nn.Linear(2 * width, width)
        else:
            self.joined = nn.Linear(2 * width, 4 * width)
            self.out = nn.Linear(4 * width, width)

    def forward(self, words_BWD: torch.Tensor, types_BCD: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [B, W, K, C]. Those of spans past the last word are 0; ignore them."""
        start_BWF, end_BWF = self.word_parts(words_BWD)
        batch, words, features = start_BWF.shape
        at_once = batch if words_BWD.is_cuda else max(1, _CPU_CHUNK // (words * features))
        chunks = [
            self._score(start_BWF[i : i + at_once], end_BWF[i : i + at_once], types_BCD[i : i + at_once])
            for i in range(0, batch, at_once)
        ]
        return torch.cat(chunks)

    def multiplications(self, word_counts: list[int], type_counts: list[int]) -> float:
        """Returns the multiplications of a forward pass over texts with so many words and types."""
        words, types = sum(word_counts), sum(type_counts)
        joint = self.out if self.joined is None else self.joined
        per_word = _weights(joint)
        if self.has_markers:
            per_word += sum(_weights(each) for each in (*self.start, *self.end) if isinstance(each, nn.Linear))
        folded = types * _weights(self.out) if self.joined is not None else 0
        return words * per_word + folded + joint.out_features * _pairs(word_counts, type_counts, self.max_width)

    def word_parts(self, words_BWD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each word's part of the joint layer, as first and as last word of a span, [B, W, F] each."""
        start, end = words_BWD, words_BWD
        if self.has_markers:
            start, end = torch.relu(self.start(words_BWD)), torch.relu(self.end(words_BWD))
        joint = self.out if self.joined is None else self.joined
        weight_start, weight_end = joint.weight.chunk(2, dim=1)
        # Dropout is per word, not per span: random numbers for the span grid would cost more than the grid itself.
        start, end = self.dropout(start), self.dropout(end)
        return nn.functional.linear(start, weight_start, joint.bias), nn.functional.linear(end, weight_end)

    def folded(self, types_BCD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the types folded into what follows the joint layer: [B, C, F], and a bias [B, C].

        Without a second layer the types are as they were, and there is no bias: the joint layer has no ReLU then.
        """
        if self.joined is None:
            return types_BCD, None
        return types_BCD @ self.out.weight, types_BCD @ self.out.bias

    def _score(self, start_bWF: torch.Tensor, end_bWF: torch.Tensor, types_bCD: torch.Tensor) -> torch.Tensor:
        words = start_bWF.shape[1]
        types, width = types_bCD.shape[1:]
        # With more than D types it is cheaper to compute the span vectors than to fold the types.
        if self.joined is None or types <= width:
            rows, bias = self.folded(types_bCD)
            bias = bias if bias is None else bias.unsqueeze(1)
            return _grid(start_bWF, end_bWF, rows.transpose(1, 2), bias, self.max_width, relu=bias is not None)
        logits = self._vectors(start_bWF, end_bWF).flatten(1, 2) @ types_bCD.transpose(1, 2)
        return logits.float().unflatten(1, (words, self.max_width))

    def by_types(
        self, words_BWD: torch.Tensor, types_CD: torch.Tensor, most: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields float32 logits [B, W, K, c] of c types after others, and the place of their first among the types.

        They are of at most `most` elements at once, unless one type alone has more.
        """
        batch, words, _ = words_BWD.shape
        at_once = max(1, most // (batch * words * self.max_width))
        if len(types_CD) <= at_once:
            yield 0, self(words_BWD, types_CD.expand(batch, -1, -1))
            return
        spans = self._vectors(*self.word_parts(words_BWD))
        for first in range(0, len(types_CD), at_once):
            yield first, (spans @ types_CD[first : first + at_once].T).float()

    def _vectors(self, start_bWF: torch.Tensor, end_bWF: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of the spans, [b, W, K, D]; 0 for spans past the last word."""
        batch, words, _ = start_bWF.shape
        vectors = start_bWF.new_zeros(batch, words, self.max_width, self.out.out_features)
        for k in range(min(self.max_width, words)):
            if self.joined is None:
                vectors[:, : words - k, k] = _spans(start_bWF, end_bWF, k, relu=False)
            else:
                vectors[:, : words - k, k] = self.out(_spans(start_bWF, end_bWF, k, relu=True))
        return vectors


def _grid(
    start_bWF: torch.Tensor,
    end_bWF: torch.Tensor,
    columns_bFC: torch.Tensor,
    bias_b1C: torch.Tensor | None,
    max_width: int,
    *,
    relu: bool,
) -> torch.Tensor:
    """Returns act(start_i + end_{i+k}) . columns + bias, float32 [b, W, K, C]; 0 for spans past the last word."""
    logits: torch.Tensor = _Grid.apply(start_bWF, end_bWF, columns_bFC, bias_b1C, max_width, relu)
    return logits


class _Grid(torch.autograd.Function):
    """The backward pass computes the spans again, which is cheaper than to keep K times the memory of the words."""

    @staticmethod
    def forward(
        ctx: Any,
        start: torch.Tensor,
        end: torch.Tensor,
        columns: torch.Tensor,
        bias: torch.Tensor | None,
        max_width: int,
        relu: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(start, end, columns)
        ctx.relu, ctx.has_bias = relu, bias is not None
        words = start.shape[1]
        logits = start.new_zeros(len(start), words, max_width, columns.shape[2], dtype=torch.float32)
        for k in range(min(max_width, words)):
            scores = torch.bmm(_spans(start, end, k, relu), columns)
            logits[:, : words - k, k] = scores if bias is None else scores + bias
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        start, end, columns = ctx.saved_tensors
        words, max_width = gradients[0].shape[1:3]
        by_start, by_end = torch.zeros_like(start), torch.zeros_like(end)
        by_columns = torch.zeros_like(columns, memory_format=torch.contiguous_format)
        rows = columns.transpose(1, 2)
        by_bias = torch.zeros_like(rows[:, :, 0]).unsqueeze(1) if ctx.has_bias else None
        for k in range(min(max_width, words)):
            gradient = gradients[0][:, : words - k, k].to(columns.dtype)
            spans = _spans(start, end, k, ctx.relu)
            by_columns += torch.bmm(spans.transpose(1, 2), gradient)
            by_spans = torch.bmm(gradient, rows)
            if ctx.relu:
                by_spans = torch.ops.aten.threshold_backward(by_spans, spans, 0)
            by_start[:, : words - k] += by_spans
            by_end[:, k:] += by_spans
            if by_bias is not None:
                by_bias += gradient.sum(1, keepdim=True)
        return by_start, by_end, by_columns, by_bias, None, None


def _pairs(word_counts: list[int], type_counts: list[int], max_width: int) -> int:
    """Returns the number of pairs of a span within its text and a type."""
    spans = [sum(max(0, words - k) for k in range(max_width)) for words in word_counts]
    return sum(count * types for count, types in zip(spans, type_counts, strict=True))


def _spans(start: torch.Tensor, end: torch.Tensor, k: int, relu: bool) -> torch.Tensor:
    spans = start[:, : start.shape[1] - k] + end[:, k:]
    return spans.relu_() if relu else spans


def span_mask(word_counts: list[int], words: int, max_width: int, device: torch.device) -> torch.Tensor:
    """Returns bool [B, W, K], True where the span lies within its text."""
    counts = torch.tensor(word_counts, device=device).view(-1, 1, 1)
    last = torch.arange(words, device=device).view(-1, 1) + torch.arange(max_width, device=device)
    return last < counts


def _weights(layer: nn.Linear) -> int:
    """Returns how many weights a layer has, even while DeepSpeed keeps them elsewhere."""
    return layer.in_features * layer.out_features
