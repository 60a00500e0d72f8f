"""Mentions that are given as strings, found in their text."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator

from spanlake.data.examples import Mention
from spanlake.text import word_offsets


def find_mentions(text: str, wanted: Iterable[tuple[str, str]]) -> tuple[tuple[Mention, ...], Counter[str]]:
    """Every place at word boundaries where one of the `wanted` (label, string) stands.

    A string is looked for in its own case, and only where it does not stand so, in any. A run of whitespace in it
    stands for any run of whitespace. Of places that overlap, the longest stays, then the first; the same place may
    mention several labels.

    Returns the mentions in order of the text, and what was dropped: strings that are `empty`, `not_found`, or found
    `inside_a_word` only, and places that were `overlapping` longer ones.
    """
    offsets = word_offsets(text)
    starts, ends = {*offsets[:, 0].tolist()}, {*offsets[:, 1].tolist()}
    dropped = Counter[str]()
    places: set[tuple[int, int, str]] = set()
    for label, string in dict.fromkeys(wanted):
        if not string.split():
            dropped["empty"] += 1
            continue
        found = list(_places(text, string))
        whole = [(start, end, label) for start, end in found if start in starts and end in ends]
        if not whole:
            dropped["inside_a_word" if found else "not_found"] += 1
        places.update(whole)
    kept, overlapping = _apart(places)
    if overlapping:
        dropped["overlapping"] = overlapping
    return tuple(Mention(*place) for place in sorted(kept)), dropped


def _places(text: str, string: str) -> Iterator[tuple[int, int]]:
    pattern = r"\s+".join(map(re.escape, string.split()))
    found = False
    for match in re.finditer(pattern, text):
        found = True
        yield match.span()
    if not found:
        yield from (match.span() for match in re.finditer(pattern, text, re.IGNORECASE))


def _apart(places: set[tuple[int, int, str]]) -> tuple[list[tuple[int, int, str]], int]:
    """The places of which none overlaps another, and how many were left out for that."""
    kept, taken = [], list[tuple[int, int]]()  # taken: sorted, and apart from each other
    for start, end, label in sorted(places, key=lambda place: (place[0] - place[1], place)):
        first = bisect_left(taken, start, key=lambda span: span[1] - 1)  # the first that ends after `start`
        stop = bisect_right(taken, end - 1, key=lambda span: span[0])  # the first that begins at `end` or later
        if first == stop:
            insort(taken, (start, end))
        elif taken[first:stop] != [(start, end)]:
            continue
        kept.append((start, end, label))
    return kept, len(places) - len(kept)
