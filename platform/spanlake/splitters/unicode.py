"""The splitter `unicode`: the words of UAX 29, cut by ICU.

ICU cuts Chinese, Japanese, Thai, Lao, Khmer and Burmese with dictionaries. Beside UAX 29, two rules hold:

- An apostrophe is a word. UAX 29 joins it to its neighbours, and then nothing could find the name in "Ada's" or in
  "l'Italie".
- A word begins and ends where a grapheme cluster does, so a combining mark never stands apart from its letter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import regex

from spanlake.errors import UserError
from spanlake.text import IntArray, cluster_edges, code_points, replace_surrogates

_APOSTROPHES = code_points("'\u2018\u2019\uff07")
# Scripts that are written without spaces, and for which ICU has no dictionary. Each character is a word.
_UNLISTED = regex.compile(r"(?V1)[\p{Line_Break=SA}--[\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}]]+")


def unicode_splitter() -> Callable[[str], IntArray]:
    """Returns the splitter. Raises `UserError` where ICU is not installed."""
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise UserError("The splitter 'unicode' needs the library icu4py; run `pip install icu4py`.") from error

    def split(text: str) -> IntArray:
        readable = replace_surrogates(text)
        codes = code_points(readable)
        edges = np.fromiter((stop for _, stop in WordBreaker(readable, "root").segments()), dtype=np.int64)
        wide = codes > 0xFFFF
        if wide.any():  # ICU counts in UTF-16, where these characters have two units
            edges = np.searchsorted(np.cumsum(1 + wide), edges) + 1
        apostrophes = np.flatnonzero(np.isin(codes, _APOSTROPHES))
        extra = [apostrophes, apostrophes + 1]
        extra += [np.arange(*run.span()) for run in _UNLISTED.finditer(readable)]
        edges = np.union1d(np.concatenate([edges, *extra]), [0, len(text)])
        clusters = cluster_edges(readable)
        if clusters is not None:
            edges = np.intersect1d(edges, np.append(clusters, 0))
        offsets = np.stack((edges[:-1], edges[1:]), axis=1)
        blank = [text[start:stop].isspace() for start, stop in offsets.tolist()]
        return offsets[~np.array(blank, dtype=np.bool_)]

    return split
