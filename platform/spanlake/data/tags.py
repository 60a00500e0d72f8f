"""Tags of words -> spans of words, and files with one word and its tag on each line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from spanlake.errors import shown

_SCHEME = re.compile(r"([BIMELSU])-(.+)", re.DOTALL)
# Phrases of CoNLL-2000 and CoNLL-2003, whose column of tags is no level of mentions.
_PHRASES = {"NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}
_NO_LABEL = re.compile(r"[BIMELSU]-?|o|[\W\d_]*")  # prefixes alone, O in the wrong case, and what holds no letter


def check_tags(tags: Sequence[str]) -> None:
    """Raises ValueError for tags of one text that are of no scheme which `spans_of_tags` reads."""
    prefixed = any(map(_SCHEME.fullmatch, tags))
    for tag in tags:
        if _NO_LABEL.fullmatch(tag) or (prefixed and tag != "O" and not _SCHEME.fullmatch(tag)):
            raise ValueError(f"the tag {shown(tag)} is not O and has no prefix and label as in B-person")


def spans_of_tags(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """First word, last word (inclusive) and label of each mention.

    Reads BIO (also in its older form, where B- stands only between neighbours), BIOES and BILOU, and tags without a
    prefix, of which equal neighbours are one mention. What begins with I- or ends without an end is a mention too.
    """
    first, open_label = 0, None
    for place, tag in enumerate(tags):
        prefix, label = _parts(tag)
        if open_label is not None and (label != open_label or prefix in "BSU"):
            yield first, place - 1, open_label
            open_label = None
        if label is not None and open_label is None:
            first, open_label = place, label
        if open_label is not None and prefix in "ELSU":
            yield first, place, open_label
            open_label = None
    if open_label is not None:
        yield first, len(tags) - 1, open_label


def _parts(tag: str) -> tuple[str, str | None]:
    """The prefix (I for a tag without one) and the label, None for O."""
    if tag == "O":
        return "O", None
    match = _SCHEME.fullmatch(tag)
    return (match[1], match[2]) if match else ("I", tag)


def read_tag_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """CoNLL files: a word, anything, and its tag on each line; sentences end at empty lines. Fields have tabs between
    them on a line that has tabs, else any whitespace.

    Where all columns after the word are tags, each is a level of mentions, as in files of nested ones.

    Yields the number of each sentence's first line and `{"tokens", "ner_tags"}`, or what is wrong with it. Lines of
    document marks and, before a sentence, comments are skipped.
    """
    words: list[str] = []
    columns: list[list[str]] = []
    start, wrong = 1, ""
    for number, line in enumerate(chain(lines, [""]), 1):
        fields = _fields(line)
        if fields and fields[0] == "-DOCSTART-":
            continue
        if not fields:
            if words or wrong:
                yield start, wrong or {"tokens": words, "ner_tags": _tags_of(columns)}
            words, columns, wrong = [], [], ""
            continue
        tagged = len(fields) > 1 and _is_tag(fields[-1])
        if not words and not wrong:
            if fields[0].startswith("#") and not tagged:
                continue
            start = number
        if not tagged and not wrong:
            wrong = f"line {number} does not end in a tag such as O or B-person"
        words.append(fields[0])
        columns.append(fields[1:])


def _tags_of(columns: Sequence[list[str]]) -> list[Any]:
    """Each word's tag, or its list of tags where there are levels."""
    levels = len(columns[0]) > 1 and len({*map(len, columns)}) == 1
    tags = [tag for tags in columns for tag in tags]
    if levels and all(map(_is_tag, tags)) and not any(_parts(tag)[1] in _PHRASES for tag in tags):
        return list(columns)
    return [tags[-1] for tags in columns]


def _is_tag(field: str) -> bool:
    return field == "O" or _SCHEME.fullmatch(field) is not None


def _fields(line: str) -> list[str]:
    """The columns of a line, and none for a blank one. Between tabs, a word may hold spaces."""
    if "\t" not in line or not line.strip():
        return line.split()
    return [field.strip() for field in line.rstrip().split("\t")]
