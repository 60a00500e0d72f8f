"""The sub-words of many words, in two flat arrays.

Shapes: W words, T sub-words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from spanlake.text import IntArray


@dataclass(frozen=True, eq=False)
class Words:
    """The sub-words of words, one word after the other."""

    ids: IntArray  # [T]
    edges: IntArray  # [W + 1]; word w has the sub-words ids[edges[w]:edges[w + 1]]

    @classmethod
    def of(cls, words: Sequence[Sequence[int]]) -> Words:
        edges = np.zeros(len(words) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, words), dtype=np.int64, count=len(words)), out=edges[1:])
        return cls(np.fromiter(chain.from_iterable(words), dtype=np.int64, count=int(edges[-1])), edges)

    def take(self, places: IntArray) -> Words:
        """Returns the words at these places, one after the other."""
        lengths = self.lengths[places]
        edges = np.concatenate(([0], np.cumsum(lengths)))
        return Words(self.ids[runs(self.edges[places], lengths)], edges)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, part: slice) -> Words:
        """Returns the words of a slice. They share the memory of these words."""
        first, stop, _ = part.indices(len(self))
        edges = self.edges[first : max(first, stop) + 1]
        return Words(self.ids[edges[0] : edges[-1]], edges - edges[0])

    @property
    def lengths(self) -> IntArray:
        """Returns how many sub-words each word has, [W]."""
        return np.diff(self.edges)

    def without_empty(self) -> Words:
        """Returns the words that have at least one sub-word."""
        kept = np.concatenate(([True], self.lengths > 0))
        return self if kept.all() else Words(self.ids, self.edges[kept])

    def clipped(self, most: int) -> Words:
        """Returns the words with the first `most` sub-words of each."""
        lengths = self.lengths
        if not len(self) or lengths.max() <= most:
            return self
        within = np.arange(len(self.ids)) - np.repeat(self.edges[:-1], lengths)
        edges = np.concatenate(([0], np.cumsum(np.minimum(lengths, most))))
        return Words(self.ids[within < most], edges)


def runs(starts: IntArray, lengths: IntArray) -> IntArray:
    """Returns, for each start s and length n in turn, the numbers s, s + 1, … s + n - 1."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
