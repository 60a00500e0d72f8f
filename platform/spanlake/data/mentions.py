"""Finds mentions that are given as strings in their text."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator

from spanlake.data.examples import Mention
from spanlake.splitters.find import Splitter
from spanlake.text import word_offsets


def find_mentions(
    text: str, wanted: Iterable[tuple[str, str]], *, nested: bool = False, split: Splitter = word_offsets
) -> tuple[tuple[Mention, ...], Counter[str]]:
    """Returns all places at boundaries of the words of `split` where one of the `wanted` pairs (label, string) occurs.

    It looks for a string in its own case first. If the string does not occur in that case, it ignores case. A run of
    whitespace in the string matches any run of whitespace. Where places overlap, the longest stays, then the first. One
    place may be a mention of several labels. If `nested` is true, all places stay.

    Returns the mentions in order of the text, and counts what it dropped: strings that are `empty`, `not_found`, or
    found only `inside_a_word`, and places that were `overlapping` longer ones.
    """
    offsets = split(text)
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
    kept, overlapping = (list(places), 0) if nested else _apart(places)
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
    """Returns places that do not overlap, and the number of places that were left out."""
    kept, taken = [], list[tuple[int, int]]()  # taken: sorted, without overlaps
    for start, end, label in sorted(places, key=lambda place: (place[0] - place[1], place)):
        first = bisect_left(taken, start, key=lambda span: span[1] - 1)  # the first that ends after `start`
        stop = bisect_right(taken, end - 1, key=lambda span: span[0])  # the first that begins at `end` or later
        if first == stop:
            insort(taken, (start, end))
        elif taken[first:stop] != [(start, end)]:
            continue
        kept.append((start, end, label))
    return kept, len(places) - len(kept)
