"""Cuts a text into words and sub-words, and into windows where it is too long for the encoder.

Training and inference both cut here, so a model is trained on the same input that it reads later.

Shapes: W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import ModelTokenizer
from spanlake.modeling.words import Words, runs
from spanlake.splitters.find import find_splitter
from spanlake.text import (
    BoolArray,
    IntArray,
    Window,
    code_points_of,
    plan_windows,
    sentence_starts,
    word_offsets,
    words_in,
)

# Neighbouring windows overlap by the widest span and this many more words, which give context.
_CONTEXT = 20


@dataclass(frozen=True, eq=False)
class CutText:
    """A text and the words of it that the tokenizer can see."""

    text: str
    offsets: IntArray  # [W, 2] code points
    words: Words

    @cached_property
    def sentence_starts(self) -> BoolArray:
        return sentence_starts(self.text, self.offsets)

    def windows(self, room: int, config: ModelConfig) -> tuple[Words, list[Window]]:
        """Returns the words, each with at most `room` sub-words, and the windows that cover them.

        A window holds at most `room` sub-words and `max_words` words. Of a word with more than `room` sub-words only
        the first ones are kept; its vector is read at the first sub-word in any case. Windows overlap by more than the
        widest span, so every span that fits into a window lies wholly in one.
        """
        count = len(self.words)
        if count <= config.max_words and len(self.words.ids) <= room:
            return self.words, [Window(0, count, 0, 2 * count)] if count else []
        words = self.words.clipped(room)
        windows = plan_windows(
            words.lengths,
            self.sentence_starts,
            max_words=config.max_words,
            max_tokens=room,
            overlap=min(config.max_width + _CONTEXT, config.max_words - 1),
        )
        return words, windows


def cut_text(text: str, tokenizer: ModelTokenizer) -> CutText:
    """Returns the words of a text and their sub-words, as `cut_texts` does."""
    return cut_texts([text], tokenizer)[0]


def cut_texts(texts: Sequence[str], tokenizer: ModelTokenizer) -> list[CutText]:
    """Returns the words of each text and their sub-words. The texts share the arrays.

    It leaves out words that the tokenizer cannot see, such as a zero-width character.
    """
    codes, begins = code_points_of(texts)
    split = find_splitter(tokenizer.splitter)
    if split is word_offsets:  # it cuts all texts at once
        offsets = words_in(codes)
    else:
        found = [split(text) + begin for text, begin in zip(texts, begins[:-1].tolist(), strict=True)]
        offsets = np.concatenate([np.zeros((0, 2), dtype=np.int64), *found])
    lengths = offsets[:, 1] - offsets[:, 0]
    words = tokenizer.cut(codes[runs(offsets[:, 0], lengths)], lengths)
    offsets, words = offsets[words.lengths > 0], words.without_empty()
    first = np.searchsorted(offsets[:, 0], begins)
    offsets -= np.repeat(begins[:-1], np.diff(first))[:, None]
    return [
        CutText(text, offsets[start:stop], words[start:stop])
        for text, (start, stop) in zip(texts, pairwise(first.tolist()), strict=True)
    ]
