"""Converts tags of words to spans of words, and reads files with one word and its tag on each line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from spanlake.errors import shown

_SCHEME = re.compile(r"([BIMELSU])-(.+)", re.DOTALL)
# Phrases of CoNLL-2000 and CoNLL-2003. Their column of tags is not a level of mentions.
_PHRASES = {"NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}
_NO_LABEL = re.compile(r"[BIMELSU]-?|o|[\W\d_]*")  # a prefix alone, o in lower case, and tags without letters


def check_tags(tags: Sequence[str]) -> None:
    """Raises ValueError if the tags of a text do not follow a scheme that `spans_of_tags` reads."""
    prefixed = any(map(_SCHEME.fullmatch, tags))
    for tag in tags:
        if _NO_LABEL.fullmatch(tag) or (prefixed and tag != "O" and not _SCHEME.fullmatch(tag)):
            raise ValueError(f"the tag {shown(tag)} is not O and has no prefix and label as in B-person")


def spans_of_tags(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yields the first word, last word (inclusive) and label of each mention.

    Reads BIO (also in its older form, with B- only between adjacent mentions), BIOES, BILOU, and tags without a prefix,
    whose equal neighbours are one mention. A mention may begin with I-, and may lack an end tag.
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
    """Returns the prefix (I for a tag without one) and the label (None for O)."""
    if tag == "O":
        return "O", None
    match = _SCHEME.fullmatch(tag)
    return (match[1], match[2]) if match else ("I", tag)


def read_tag_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields for each sentence of a CoNLL file its first line number and `{"tokens", "ner_tags"}`, or what is wrong.

    Each line has a word, other fields, and a tag. Fields are separated by tabs, or by whitespace on a line without
    tabs. If every column after the word has tags, each column is a level of nested mentions. An empty line ends a
    sentence. Document marks, and comments before a sentence, are skipped.
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
    """Returns the tag of each word, or its list of tags if the columns are levels."""
    levels = len(columns[0]) > 1 and len({*map(len, columns)}) == 1
    tags = [tag for tags in columns for tag in tags]
    if levels and all(map(_is_tag, tags)) and not any(_parts(tag)[1] in _PHRASES for tag in tags):
        return list(columns)
    return [tags[-1] for tags in columns]


def _is_tag(field: str) -> bool:
    return field == "O" or _SCHEME.fullmatch(field) is not None


def _fields(line: str) -> list[str]:
    """Returns the fields of a line; none for a blank line. On a line with tabs, a word may contain spaces."""
    if "\t" not in line or not line.strip():
        return line.split()
    return [field.strip() for field in line.rstrip().split("\t")]
