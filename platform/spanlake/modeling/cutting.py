"""Cuts a text into words and sub-words, and into windows where it is too long for the encoder.

Training and inference both cut here, so a model is trained on the same input that it reads later.

Shapes: W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.modeling.words import Words
from spanlake.splitters.find import find_splitter
from spanlake.text import BoolArray, IntArray, Window, plan_windows, replace_surrogates, sentence_starts

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
        words = self.words.clipped(room)
        fits = len(words) <= config.max_words and len(words.ids) <= room
        windows = plan_windows(
            words.lengths,
            np.zeros(len(words), dtype=np.bool_) if fits else self.sentence_starts,
            max_words=config.max_words,
            max_tokens=room,
            overlap=min(config.max_width + _CONTEXT, config.max_words - 1),
        )
        return words, windows


def cut_text(text: str, tokenizer: PromptTokenizer) -> CutText:
    """Returns the words of a text and their sub-words.

    It leaves out words that the tokenizer cannot see, such as a zero-width character.
    """
    offsets = find_splitter(tokenizer.splitter)(text)
    readable = replace_surrogates(text)
    words = tokenizer.words([readable[start:end] for start, end in offsets.tolist()])
    return CutText(text, offsets[words.lengths > 0], words.without_empty())
