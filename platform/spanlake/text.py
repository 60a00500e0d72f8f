"""Words and their character offsets; windows over texts longer than a model can read."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# The published GLiNER checkpoints were trained on exactly these words.
_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _codes(characters: str) -> NDArray[np.uint32]:
    """The code points of a string, surrogates included."""
    return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), dtype="<u4")


_SPACED_ENDERS = _codes(".!?…‼⁇⁈⁉؟۔।॥።၊။។՞։")  # end a sentence when whitespace follows
_UNSPACED_ENDERS = _codes("。！？｡．")  # scripts written without spaces
_CLOSERS = _codes("\"'”’»›)]}」』）】》〉］｝〕｣")
_LINE_BREAKS = _codes("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")  # what str.splitlines() cuts at


def word_offsets(text: str) -> IntArray:
    """Find the words of a text.

    Returns int64 [W, 2]: start and end (exclusive) of each word in code points, increasing and not overlapping.
    Between two words there is nothing but whitespace, so no other character is lost.
    """
    flat = np.fromiter((edge for match in _WORD.finditer(text) for edge in match.span()), dtype=np.int64)
    return flat.reshape(-1, 2)


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates by U+FFFD, one for one, so that offsets stay as they are.

    A Python string may hold surrogates, but no UTF-8 does, and the tokenizers refuse them.
    """
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """The text with a space for each line break, tab and control character, for a terminal that would obey them."""
    return "".join(character if character.isprintable() else " " for character in text)


def sentence_starts(text: str, offsets: IntArray) -> BoolArray:
    """Say which words begin a sentence, roughly: abbreviations are not known.

    A sentence begins at the first word, after a line break, and after sentence-ending punctuation with any closing
    quotes and brackets, where whitespace follows (the full stops of Chinese and Japanese need none).

    offsets: [W, 2] as word_offsets(text) gives them. Returns bool [W].
    """
    count = len(offsets)
    if count == 0:
        return np.zeros(0, dtype=np.bool_)
    codes = _codes(text)
    first, stop = offsets[:, 0], offsets[:, 1]
    sign = np.where(stop - first == 1, codes[first], 0)  # punctuation is always a word of one character
    closer = np.isin(sign, _CLOSERS)
    spaced = np.isin(sign, _SPACED_ENDERS)
    unspaced = np.isin(sign, _UNSPACED_ENDERS)

    # For each word the nearest one before it, itself included, that is not a closer (word 0 if there is none).
    base = np.maximum.accumulate(np.where(closer, 0, np.arange(count)))[:-1]
    gap = first[1:] > stop[:-1]
    attached = closer | spaced | unspaced  # without a gap these continue the sentence's end
    line = np.searchsorted(np.flatnonzero(np.isin(codes, _LINE_BREAKS)), first)

    starts = np.ones(count, dtype=np.bool_)
    starts[1:] = (line[1:] > line[:-1]) | (spaced[base] & gap) | (unspaced[base] & (gap | ~attached[1:]))
    return starts


class Window(NamedTuple):
    """A part of a document that the model reads at once.

    It holds the words first..stop (stop exclusive). A span of the words i..j (both inclusive, document indexes) is
    taken from this window alone when own_from <= i + j < own_to.
    """

    first: int
    stop: int
    own_from: int
    own_to: int


def plan_windows(
    lengths: NDArray[Any],
    sentence_start: BoolArray,
    *,
    max_words: int,
    max_tokens: int,
    overlap: int,
) -> list[Window]:
    """Cover a document with overlapping windows of at most max_words words and max_tokens sub-words.

    lengths: int [W], sub-words per word. A word of more than max_tokens sub-words counts as max_tokens: the caller
    clips its sub-words. sentence_start: bool [W]; windows prefer to end and to begin between sentences.
    overlap: the widest span, in words, that must not be lost. Neighbouring windows share at least that many words;
    fewer only where so many words, and the one after them, exceed max_tokens.

    Every span belongs to one window. A span of at most `overlap` words (and at most max_tokens sub-words, for no
    window holds more) lies wholly in the window it belongs to, and of the windows at a cut that is the one in which
    it is further from the cut edge. Raises ValueError for limits that cannot be met.
    """
    words = len(lengths)
    if max_words < 1 or max_tokens < 1 or not 0 <= overlap < max_words:
        raise ValueError(f"no windows of {max_words} words and {max_tokens} sub-words can overlap by {overlap} words")
    if len(sentence_start) != words:
        raise ValueError(f"{words} word lengths but {len(sentence_start)} sentence marks")
    if words == 0:
        return []
    if int(np.min(lengths)) < 0:
        raise ValueError("a word cannot have a negative number of sub-words")

    tokens = np.zeros(words + 1, dtype=np.int64)  # sub-words before each word
    np.cumsum(np.minimum(lengths, max_tokens), out=tokens[1:])
    # For each word the nearest sentence start at or before it.
    sentence = np.maximum.accumulate(np.where(sentence_start, np.arange(words), 0))

    windows: list[Window] = []
    first = stop = own_from = 0
    while True:
        # Where the sub-words run out. Both limits lie beyond the last stop: the last `first` was chosen so.
        full = int(np.searchsorted(tokens, tokens[first] + max_tokens, side="right")) - 1
        limit = min(first + max_words, full)
        if limit >= words:
            windows.append(Window(first, words, own_from, 2 * words))
            return windows

        # A sentence end is taken if it costs at most a quarter of the window, and if the next window can still begin
        # after this one's first word.
        enough = tokens[first] + (3 * (tokens[limit] - tokens[first]) + 3) // 4
        earliest = max(
            stop + 1,
            min(first + overlap + 1, full),
            first + (3 * (limit - first) + 3) // 4,
            int(np.searchsorted(tokens, enough)),
        )
        cut = int(sentence[limit])
        stop = cut if cut >= earliest else limit

        # The next window must have room for the word at `stop`, so it cannot begin before `reach`. A span that does
        # not fit into this window ends at `stop` or later; if it has at most `overlap` words and fits any window, it
        # begins at `latest` or later.
        reach = int(np.searchsorted(tokens, tokens[stop + 1] - max_tokens))
        latest = max(stop - overlap, reach)
        earliest = max(
            reach,
            stop - (stop - first) // 2,  # after `first`, always
            int(np.searchsorted(tokens, tokens[stop] - max_tokens // 2)),
        )
        start = int(sentence[latest])
        following = start if start >= earliest else latest

        # i - following, the distance to the next window's edge, equals stop - 1 - j, that to this one's, where
        # i + j = following + stop - 1: up to there the span is this window's.
        windows.append(Window(first, stop, own_from, following + stop))
        first, own_from = following, following + stop
