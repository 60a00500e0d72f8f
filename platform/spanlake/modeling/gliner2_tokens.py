"""Lays out words and labels as GLiNER2 does: `( [P] entities ( [E] type … ) ) [SEP_TEXT] words`.

Words are read in lower case, and a period follows a text that does not end with one, or with `!` or `?`. No vector is
read at that period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from spanlake.modeling.tokens import Batch, Prompt, PromptTokenizer
from spanlake.modeling.words import Words

_HEAD = ["(", "[P]", "entities", "("]
_TAIL = [")", ")"]


class Gliner2Tokenizer(PromptTokenizer):
    """Threads may share it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what `PromptTokenizer` takes, and raises what it raises."""
        super().__init__(*arguments, **options)
        self._before, self._after = [], []  # GLiNER2 leaves out the tokens that its tokenizer would set
        self._head, self._tail = (list(chain(*self._cut_distinct(words))) for words in (_HEAD, _TAIL))
        self._closing = [self.words(mark) for mark in ".!?"]

    @property
    def special_tokens(self) -> int:
        return len(self._closing[0].ids)

    def _as_read(self, words: list[str]) -> list[str]:
        return [word.lower() for word in words]

    def prompt(self, labels: Sequence[tuple[int, ...]]) -> Prompt:
        inner = super().prompt(labels)
        types, separator = inner.ids[:-1], inner.ids[-1:]
        return Prompt(
            (*self._head, *types, *self._tail, *separator),
            tuple(len(self._head) + position for position in inner.type_positions),
        )

    def collate(self, rows: Sequence[tuple[Prompt, Words]], pad_id: int) -> Batch:
        counts = [len(words) for _, words in rows]
        batch = super().collate([(prompt, self._closed(words)) for prompt, words in rows], pad_id)
        positions = batch.word_positions[:, : max(counts)]
        for row, count in zip(positions, counts, strict=True):
            row[count:] = 0
        return replace(batch, word_positions=positions, word_counts=counts)

    def _closed(self, words: Words) -> Words:
        last = words[len(words) - 1 :].ids
        if any(np.array_equal(last, mark.ids) for mark in self._closing):
            return words
        ids = np.concatenate([words.ids, self._closing[0].ids])
        return Words(ids, np.append(words.edges, len(ids)))
