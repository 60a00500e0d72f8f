"""Word and type vectors -> one logit per span and type (Zaratiana et al. 2023, equations 1 and 2).

A span (i, i + k) has the vector `W2 act(W1 [x_i ; y_j] + b1) + b2` and its logit against a type q is the dot product of
the two. Both linear layers are factored, which changes nothing but the order of the sums:

- `W1 [x_i ; y_j] = W_s x_i + W_e y_j`: computed per word and added per span, so nothing of size spans x 2D is built;
- `(W2 r + b2) . q = r . (W2^T q) + b2 . q`: W2 is folded into the types, as long as they are fewer than D.

Shapes: B texts, W words, K span width, C types, D width of a vector, F width inside the joint layer.
"""

from __future__ import annotations

import torch
from torch import nn

from spanlake.modeling.config import SpanHeadKind

# Elements of [texts, W, F] worked on at once. Small enough for a CPU core's cache, where the work is bound by memory;
# an accelerator takes the batch whole.
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
        """Returns float32 logits [B, W, K, C]; entries of spans past the last word are 0 and mean nothing."""
        start_BWF, end_BWF = self.word_parts(words_BWD)
        batch, words, features = start_BWF.shape
        at_once = batch if words_BWD.is_cuda else max(1, _CPU_CHUNK // (words * features))
        chunks = [
            self._score(start_BWF[i : i + at_once], end_BWF[i : i + at_once], types_BCD[i : i + at_once])
            for i in range(0, batch, at_once)
        ]
        return torch.cat(chunks)

    def word_parts(self, words_BWD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each word adds to the joint layer as the first and as the last word of a span, [B, W, F] each."""
        start, end = words_BWD, words_BWD
        if self.has_markers:
            start, end = torch.relu(self.start(words_BWD)), torch.relu(self.end(words_BWD))
        joint = self.out if self.joined is None else self.joined
        weight_start, weight_end = joint.weight.chunk(2, dim=1)
        # Dropped per word, not per span: random numbers for the span grid would cost more than the grid itself.
        start, end = self.dropout(start), self.dropout(end)
        return nn.functional.linear(start, weight_start, joint.bias), nn.functional.linear(end, weight_end)

    def _score(self, start_bWF: torch.Tensor, end_bWF: torch.Tensor, types_bCD: torch.Tensor) -> torch.Tensor:
        texts, words, _ = start_bWF.shape
        types, width = types_bCD.shape[1:]
        # The folded types are [b, F, C]; beyond D types it is cheaper to finish the span vectors.
        fold = self.joined is not None and types <= width
        if fold:
            columns = (types_bCD @ self.out.weight).transpose(1, 2)
            bias = (types_bCD @ self.out.bias).unsqueeze(1)
        else:
            columns = types_bCD.transpose(1, 2)
            bias = columns.new_zeros(())
        by_width = []
        for k in range(min(self.max_width, words)):
            spans = start_bWF[:, : words - k] + end_bWF[:, k:]
            if self.joined is not None:
                spans = spans.relu_()
                if not fold:
                    spans = self.out(spans)
            logits = (torch.bmm(spans, columns) + bias).float()
            by_width.append(nn.functional.pad(logits, (0, 0, 0, k)))
        unused = self.max_width - len(by_width)
        by_width.extend([by_width[0].new_zeros(texts, words, types)] * unused)
        return torch.stack(by_width, dim=2)


def span_mask(word_counts: list[int], words: int, max_width: int, device: torch.device) -> torch.Tensor:
    """[B, W, K], True where the span lies within its text."""
    counts = torch.tensor(word_counts, device=device).view(-1, 1, 1)
    last = torch.arange(words, device=device).view(-1, 1) + torch.arange(max_width, device=device)
    return last < counts
