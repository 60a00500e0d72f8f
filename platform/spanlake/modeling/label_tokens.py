"""Lays out words and labels for a bi-encoder: `[CLS] words [SEP]`, and each label apart as `[CLS] label [SEP]`.

Shapes: B texts, C labels in the longest list, N distinct labels of a batch, L sub-words in the longest label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from spanlake.errors import UserError, shown
from spanlake.modeling.tokens import (
    Batch,
    ModelTokenizer,
    Prompt,
    check_label,
    padded,
    special_ids,
    surrounding_tokens,
)
from spanlake.modeling.words import Words

_NO_PROMPT = Prompt((), ())


@dataclass
class LabelledBatch(Batch):
    """A batch whose `type_positions` are places among its distinct labels."""

    label_ids: torch.Tensor  # [N, L] int64
    label_mask: torch.Tensor  # [N, L] int64

    def to(self, device: torch.device) -> LabelledBatch:
        return LabelledBatch(
            **vars(super().to(device)),
            label_ids=self.label_ids.to(device, non_blocking=True),
            label_mask=self.label_mask.to(device, non_blocking=True),
        )


class BiTokenizer(ModelTokenizer):
    """Cuts words with one tokenizer and labels with another. Threads may share it."""

    labels_backend: Tokenizer

    def __init__(self, tokenizer: Tokenizer, labels_tokenizer: Tokenizer, *, most: int, pad_id: int, splitter: str):
        """Takes over both tokenizers. A label has at most `most` sub-words; `pad_id` fills up shorter ones.

        Raises `PackageError` for a labels tokenizer that reads no text, and `UserError` as `ModelTokenizer` does.
        """
        super().__init__(tokenizer, splitter)
        labels_tokenizer.no_truncation()
        labels_tokenizer.no_padding()
        before, after = surrounding_tokens(labels_tokenizer)
        self.labels_backend = labels_tokenizer
        self._around = len(before), len(after)
        self._most = most
        self._labels_pad_id = pad_id
        self._reserved = special_ids(labels_tokenizer)

    def label(self, label: str) -> tuple[int, ...]:
        """Returns the sub-words of a label with the special tokens around them.

        Raises `UserError` for a label without visible characters, with a reserved token, or with too many sub-words.
        """
        ids = tuple(self.labels_backend.encode(label).ids)
        first, after = self._around
        check_label(label, ids[first : len(ids) - after], self.labels_backend, self._reserved)
        if len(ids) > self._most:
            raise UserError(
                f"The label {shown(label)} has {len(ids)} sub-words; the model reads labels of at most {self._most}, "
                "so shorten it."
            )
        return ids

    def cost(self, label: tuple[int, ...]) -> int:
        return 0

    def prompt(self, labels: Sequence[tuple[int, ...]]) -> Prompt:
        return Prompt((), tuple(range(len(labels))), tuple(labels))

    def label_batch(self, labels: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sub-words of labels, int64 [N, L], and 1 where there is one, int64 [N, L]."""
        if not labels:
            return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int64)
        lengths = list(map(len, labels))
        ids = padded([np.array(label, dtype=np.int64) for label in labels], lengths, self._labels_pad_id)
        mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

    def collate_words(self, words: Sequence[Words], pad_id: int) -> Batch:
        """Returns a batch of words alone, each with at least one sub-word."""
        return self.lay_out([_NO_PROMPT] * len(words), words, pad_id)

    def collate(self, rows: Sequence[tuple[Prompt, Words]], pad_id: int) -> LabelledBatch:
        """Returns a batch as other tokenizers do. Each distinct label is in it once."""
        prompts, words = zip(*rows, strict=True)
        place: dict[tuple[int, ...], int] = {}
        for label in (label for prompt in prompts for label in prompt.labels):
            place.setdefault(label, len(place))
        places = [np.array([place[label] for label in prompt.labels], dtype=np.int64) for prompt in prompts]
        counts = list(map(len, places))
        batch = replace(
            self.collate_words(words, pad_id),
            type_positions=torch.from_numpy(padded(places, counts)),
            type_counts=counts,
        )
        label_ids, label_mask = self.label_batch(list(place))
        return LabelledBatch(**vars(batch), label_ids=label_ids, label_mask=label_mask)
