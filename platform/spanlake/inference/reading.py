"""How a pass reads its labels: in a prompt before the words, or as vectors that are made once and fit every text.

Shapes: B rows, W words, K span width, C labels, c labels of a part, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch

from spanlake.inference.label_vectors import LabelVectors
from spanlake.inference.planning import LabelGroup, Row
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.label_tokens import BiTokenizer
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch, ModelTokenizer
from spanlake.package import Package

# Logits that are in memory at once, where labels are vectors.
_MOST_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}


class Reader(Protocol):
    def lay_out(self, rows: Sequence[Row]) -> Batch:
        """Returns the input of a pass over the rows."""

    def logits(self, model: SpanModel, rows: list[Row], batch: Batch) -> Iterator[tuple[list[Row], torch.Tensor]]:
        """Yields rows with a part of their labels, and their logits [B, W, K, c], until every label has been."""

    def vectors(
        self, model: SpanModel, rows: list[Row], batch: Batch
    ) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
        """Yields, in place of logits, what the span head makes them of: vectors [B, W, D] and [B, c, D]."""


def make_reader(package: Package, device: torch.device) -> Reader:
    """Returns the reader for the family of the package's model."""
    pad_id = package.config.pad_token_id
    if isinstance(package.tokenizer, BiTokenizer):
        width = package.config.hidden_size
        return VectorReader(package.tokenizer, pad_id, package.fingerprint, width, device)
    return PromptReader(package.tokenizer, pad_id)


class PromptReader:
    def __init__(self, tokenizer: ModelTokenizer, pad_id: int) -> None:
        self._tokenizer, self._pad_id = tokenizer, pad_id

    def lay_out(self, rows: Sequence[Row]) -> Batch:
        return self._tokenizer.collate([(row.group.prompt, row.words) for row in rows], self._pad_id)

    def logits(self, model: SpanModel, rows: list[Row], batch: Batch) -> Iterator[tuple[list[Row], torch.Tensor]]:
        yield rows, model(batch)

    def vectors(
        self, model: SpanModel, rows: list[Row], batch: Batch
    ) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
        yield rows, *model.vectors(batch)


class VectorReader:
    """Reads each text once, however many labels there are, and scores the labels part by part."""

    def __init__(self, tokenizer: BiTokenizer, pad_id: int, fingerprint: str, width: int, device: torch.device) -> None:
        self._tokenizer, self._pad_id = tokenizer, pad_id
        self._vectors = LabelVectors(tokenizer, fingerprint, width, device)
        self._most = _MOST_LOGITS[device.type]

    def lay_out(self, rows: Sequence[Row]) -> Batch:
        return self._tokenizer.collate_words([row.words for row in rows], self._pad_id)

    def logits(self, model: SpanModel, rows: list[Row], batch: Batch) -> Iterator[tuple[list[Row], torch.Tensor]]:
        for own, words, types in self._groups(model, rows, batch):
            for first, logits in model.spans.by_types(words, types, self._most):
                yield _of_labels(own, first, logits.shape[-1]), logits

    def vectors(
        self, model: SpanModel, rows: list[Row], batch: Batch
    ) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
        for own, words, types in self._groups(model, rows, batch):
            # The head folds the types of each text into its last layer, whose width is four times that of a vector.
            of_type = len(own) * max(words.shape[1] * model.config.max_width, 4 * words.shape[2])
            at_once = max(1, self._most // of_type)
            for first in range(0, len(types), at_once):
                part = types[first : first + at_once]
                yield _of_labels(own, first, len(part)), words, part.expand(len(own), -1, -1)

    def _groups(
        self, model: SpanModel, rows: list[Row], batch: Batch
    ) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
        """Yields the rows of each label group, with the vectors of their words and of the labels, [C, D]."""
        bi_encoder = cast(BiEncoderModel, model)
        words = bi_encoder.words(bi_encoder.hidden(batch), batch)
        for group, places in _by_group(rows):
            types = self._vectors.of(bi_encoder, group.prompt).to(words.dtype)
            own = words if len(places) == len(rows) else words[places]
            yield [rows[place] for place in places], own, types


def _of_labels(rows: Sequence[Row], first: int, count: int) -> list[Row]:
    """Returns the rows with `count` labels of their group, which is the same for all, from `first` on."""
    part = rows[0].group.part(first, count)
    return [replace(row, group=part) for row in rows]


def _by_group(rows: Sequence[Row]) -> Iterator[tuple[LabelGroup, list[int]]]:
    """Yields each label group and the places of its rows."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(id(row.group), []).append(place)
    for own in places.values():
        yield rows[own[0]].group, own
