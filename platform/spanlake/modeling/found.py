"""Finds the spans above their thresholds on an accelerator, in memory of a fixed size, so that the host need not wait.

Shapes: B rows of a batch, W words, K span width, C types, D width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spanlake.modeling.span_head import SpanHead
from spanlake.modeling.transfer import moved

_HEADER = 2  # numbers before the places


@dataclass(frozen=True)
class Wanted:
    """Which spans of a batch are looked for."""

    own: torch.Tensor  # [B, 4] int64: the row's first word in its text, `own_from`, `own_to`, and its number of words
    limits: torch.Tensor  # [B, C] float32: a span is found if its score exceeds the limit of the type

    def to(self, device: torch.device) -> Wanted:
        return Wanted(moved(self.own, device), moved(self.limits, device))

    def spans(self, words: int, width: int) -> torch.Tensor:
        """Returns bool [B, words, width], True for the spans that lie within their row and belong to it."""
        first, own_from, own_to, count = self.own.view(-1, 4, 1, 1).unbind(1)
        word = torch.arange(words, device=self.own.device).view(-1, 1)
        extra = torch.arange(width, device=self.own.device)
        centre = 2 * (first + word) + extra
        return (word + extra < count) & (own_from <= centre) & (centre < own_to)


@dataclass(frozen=True)
class Scale:
    """The score of a span is sigmoid(scale * logit + shift)."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Found:
    """The spans found in a batch, in one tensor, which is copied to the host at once.

    Its numbers are: how many spans exceed their limit, even if there is no room for them; 0 if a score is not a number;
    then the places of the spans in [B, W, K, C], in any order; then their scores, two in one number.
    """

    numbers: torch.Tensor  # int64
    room: int  # for spans

    @classmethod
    def empty(cls, room: int, device: torch.device) -> Found:
        numbers = torch.zeros(_HEADER + room + (room + 1) // 2, dtype=torch.int64, device=device)
        numbers[1] = 1
        return cls(numbers, room)

    @property
    def header(self) -> torch.Tensor:
        return self.numbers[:_HEADER]

    @property
    def places(self) -> torch.Tensor:
        return self.numbers[_HEADER : _HEADER + self.room]

    @property
    def scores(self) -> torch.Tensor:
        return self.numbers[_HEADER + self.room :].view(torch.float32)[: self.room]

    def is_number(self, *values: torch.Tensor) -> None:
        """Notes whether all these values are numbers. They have to be, for scores to be so."""
        total = torch.stack([value.sum(dtype=torch.float32) for value in values]).sum()
        self.numbers[1] = total.isfinite()


def find_spans(
    head: SpanHead, words_BWD: torch.Tensor, types_BCD: torch.Tensor, wanted: Wanted, scale: Scale, room: int
) -> Found:
    """Returns the spans above their limits, computed by PyTorch. Writes the logits of all spans to memory."""
    logits = head(words_BWD, types_BCD) * scale.scale + scale.shift
    _, words, width, _ = logits.shape
    scores = torch.sigmoid(logits)
    kept = (scores > wanted.limits[:, None, None]) & wanted.spans(words, width).unsqueeze(-1)
    found = Found.empty(room, logits.device)
    if words_BWD.dtype == torch.float16:
        found.is_number(logits)
    so_far = kept.flatten().cumsum(0, dtype=torch.int32)
    found.numbers[0] = so_far[-1]
    nth = torch.arange(1, room + 1, dtype=torch.int32, device=logits.device)
    found.places.copy_(torch.searchsorted(so_far, nth).clamp_(max=len(so_far) - 1))
    found.scores.copy_(scores.flatten()[found.places])
    return found
