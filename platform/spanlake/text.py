"""Words and their character offsets, and windows over texts that are too long for a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_SPACE, _SIGN, _LETTER = 0, 1, 2  # kinds of code points: a letter is what \w matches in a regular expression
_HYPHEN = ord("-")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CLUSTER = regex.compile(r"\X")
# Without these characters, every cluster of a text is one code point, except \r\n.
_JOINING = regex.compile(
    r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}\p{GCB=Prepend}\p{GCB=RI}\p{GCB=L}\p{GCB=V}\p{GCB=T}]+"
)


def code_points(characters: str) -> NDArray[np.uint32]:
    """Returns the code points of a string, surrogates included."""
    return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), dtype="<u4")


_SPACED_ENDERS = code_points(".!?…‼⁇⁈⁉؟۔।॥።၊။។՞։")  # end a sentence when whitespace follows
_UNSPACED_ENDERS = code_points("。！？｡．")  # end a sentence in any case: these scripts have no spaces
_CLOSERS = code_points("\"'”’»›)]}」』）】》〉］｝〕｣")
_LINE_BREAKS = code_points("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")  # where str.splitlines() cuts


@cache
def _kinds() -> NDArray[np.uint8]:
    """Returns the kind of every code point."""
    everything = _every_code_point()
    kinds = np.full(len(everything), _SIGN, dtype=np.uint8)
    for pattern, kind in ((r"\s+", _SPACE), (r"\w+", _LETTER)):
        for match in re.finditer(pattern, everything):
            kinds[match.start() : match.end()] = kind
    return kinds


@cache
def _joins() -> BoolArray:
    """Returns, for every code point, whether it may share a cluster with another one."""
    everything = _every_code_point()
    joins = np.zeros(len(everything), dtype=np.bool_)
    for match in _JOINING.finditer(everything):
        joins[match.start() : match.end()] = True
    return joins


def _every_code_point() -> str:
    return np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def word_offsets(text: str) -> IntArray:
    """Returns the words of a text: int64 [W, 2], the start and end (exclusive) of each word in code points.

    A word is a run of letters, digits and underscores, with single hyphens between them. Every other character is a
    word by itself, except whitespace. The published GLiNER checkpoints were trained on exactly these words.

    The offsets increase, and the words do not overlap. Only whitespace lies between words, so no other character is
    lost.
    """
    return words_in(code_points(text))


def words_in(codes: NDArray[np.uint32]) -> IntArray:
    """Returns the words of a text as `word_offsets` does, from its code points."""
    kinds = _kinds()[codes]
    inside, alone = kinds == _LETTER, kinds == _SIGN
    hyphens = np.flatnonzero(codes[1:-1] == _HYPHEN) + 1
    joints = hyphens[inside[hyphens - 1] & inside[hyphens + 1]]
    inside[joints], alone[joints] = True, False
    begins, ends = inside.copy(), inside.copy()
    begins[1:] &= ~inside[:-1]
    ends[:-1] &= ~inside[1:]
    return np.stack((np.flatnonzero(begins | alone), np.flatnonzero(ends | alone) + 1), axis=1)


def code_points_of(texts: Sequence[str]) -> tuple[NDArray[np.uint32], IntArray]:
    """Returns the code points of all texts, with a line break after each, and the place at which each text begins.

    The places are int64 [N + 1]; the last is the end.
    """
    edges = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1, out=edges[1:])
    return code_points("".join([f"{text}\n" for text in texts])), edges


def cluster_edges(text: str) -> IntArray | None:
    """Returns where each grapheme cluster of a text ends (UAX 29), int64; None if every code point is a cluster.

    In the second case, a line break of two code points is still one cluster.
    """
    if text.isascii() or not _joins()[code_points(text)].any():
        return None
    return np.fromiter((cluster.end() for cluster in _CLUSTER.finditer(text)), dtype=np.int64)


def whole_characters(text: str, offsets: IntArray) -> IntArray:
    """Moves the edges of words outwards to those of grapheme clusters, the characters that a reader sees (UAX 29).

    offsets: [W, 2] as a splitter returns them. To some splitters, a combining mark is a word.

    Returns int64 [W, 2], in which words that share a cluster overlap. Returns `offsets` itself where no word begins or
    ends inside a cluster.
    """
    ends = cluster_edges(text)
    if ends is None:
        return offsets
    starts = np.concatenate(([0], ends[:-1]))
    first = starts[np.searchsorted(starts, offsets[:, 0], side="right") - 1]
    stop = ends[np.searchsorted(ends, offsets[:, 1])]
    whole = np.stack((first, stop), axis=1)
    return offsets if np.array_equal(whole, offsets) else whole


def replace_surrogates(text: str) -> str:
    """Returns the text with each lone surrogate replaced by U+FFFD, so that offsets stay the same.

    A Python string may hold surrogates, but UTF-8 cannot, and the tokenizers refuse them.
    """
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """Returns the text with a space for each line break, tab and control character, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def sentence_starts(text: str, offsets: IntArray) -> BoolArray:
    """Returns bool [W]: which words begin a sentence. This is an estimate, because abbreviations are not known.

    A sentence begins at the first word and after a line break. It also begins after sentence-ending punctuation, with
    any closing quotes and brackets, where whitespace follows. Chinese and Japanese full stops need no whitespace.

    offsets: [W, 2] as a splitter returns them.
    """
    count = len(offsets)
    if count == 0:
        return np.zeros(0, dtype=np.bool_)
    codes = code_points(text)
    first, stop = offsets[:, 0], offsets[:, 1]
    sign = np.where(stop - first == 1, codes[first], 0)  # punctuation is always a word of one character
    closer = np.isin(sign, _CLOSERS)
    spaced = np.isin(sign, _SPACED_ENDERS)
    unspaced = np.isin(sign, _UNSPACED_ENDERS)

    # For each word the nearest word at or before it that is not a closer (word 0 if all are closers).
    base = np.maximum.accumulate(np.where(closer, 0, np.arange(count)))[:-1]
    gap = first[1:] > stop[:-1]
    attached = closer | spaced | unspaced  # without a gap these continue the sentence's end
    line = np.searchsorted(np.flatnonzero(np.isin(codes, _LINE_BREAKS)), first)

    starts = np.ones(count, dtype=np.bool_)
    starts[1:] = (line[1:] > line[:-1]) | (spaced[base] & gap) | (unspaced[base] & (gap | ~attached[1:]))
    return starts


class Window(NamedTuple):
    """A part of a document that the model reads at once.

    It holds the words first..stop (stop exclusive). A span of the words i..j (both inclusive, document indexes) belongs
    to this window alone when own_from <= i + j < own_to.
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
    """Returns overlapping windows over a document, each of at most max_words words and max_tokens sub-words.

    lengths: int [W], sub-words per word. A word of more than max_tokens sub-words counts as max_tokens: the caller
    clips its sub-words.
    sentence_start: bool [W]; windows end and begin between sentences where that costs little.
    overlap: the widest span, in words, that must not be lost. Neighbouring windows share at least that many words. They
    share fewer only where that many words and the next one exceed max_tokens.

    Every span belongs to one window. A span of at most `overlap` words and at most max_tokens sub-words lies wholly in
    its window. Where two windows hold the span, it belongs to the one in which it is further from the cut edge.

    Raises ValueError for limits that cannot be met.
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
    # For each word, the nearest sentence start at or before it.
    sentence = np.maximum.accumulate(np.where(sentence_start, np.arange(words), 0))

    windows: list[Window] = []
    first = stop = own_from = 0
    while True:
        # `full` is the word at which the sub-words run out. Both limits lie after the last window's stop, because
        # `first` was chosen so.
        full = int(np.searchsorted(tokens, tokens[first] + max_tokens, side="right")) - 1
        limit = min(first + max_words, full)
        if limit >= words:
            windows.append(Window(first, words, own_from, 2 * words))
            return windows

        # The window ends at a sentence end if that costs at most a quarter of the window, and if the next window can
        # still begin after this one's first word.
        enough = tokens[first] + (3 * (tokens[limit] - tokens[first]) + 3) // 4
        earliest = max(
            stop + 1,
            min(first + overlap + 1, full),
            first + (3 * (limit - first) + 3) // 4,
            int(np.searchsorted(tokens, enough)),
        )
        cut = int(sentence[limit])
        stop = cut if cut >= earliest else limit

        # The next window must have room for the word at `stop`, so it begins at `reach` or later. A span that does not
        # fit into this window ends at `stop` or later. If it has at most `overlap` words and fits some window, it
        # begins at `latest` or later.
        reach = int(np.searchsorted(tokens, tokens[stop + 1] - max_tokens))
        latest = max(stop - overlap, reach)
        earliest = max(
            reach,
            stop - (stop - first) // 2,  # always after `first`
            int(np.searchsorted(tokens, tokens[stop] - max_tokens // 2)),
        )
        start = int(sentence[latest])
        following = start if start >= earliest else latest

        # The distance of a span to the next window's edge is i - following, and to this window's edge stop - 1 - j.
        # They are equal where i + j = following + stop - 1; up to there the span belongs to this window.
        windows.append(Window(first, stop, own_from, following + stop))
        first, own_from = following, following + stop
