"""Reads the lists that language models answer with, also where they are wrapped in words or not quite well-formed."""

from __future__ import annotations

import ast
import json
import re
from typing import Any, NamedTuple

_LONGEST = 200_000  # characters
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_STRINGS = rf"{_STRING}(?:\s*,\s*{_STRING})*"
_ROW = re.compile(rf"[(\[]\s*({_STRING}(?:\s*,\s*(?:{_STRING}|\[\s*{_STRINGS}\s*\]))+)\s*,?\s*[)\]]")
_TOKEN = re.compile(rf"(?<!\w){_STRING}|[\[\]]")  # an apostrophe within a word begins no string
_OPEN = re.compile(r"\[")
_QUOTES = str.maketrans("“”„«»", '"""""')
_NAMES = ("entity", "name", "text", "mention", "span", "string")
_TYPES = ("types", "type", "label", "entity_type", "category")


Row = tuple[str, ...]  # a string, with the types that follow it; empty where the item is malformed


class Rows(NamedTuple):
    rows: list[Row]
    malformed: int  # items that are neither strings nor made of strings
    whole: bool  # the list is well-formed to its end


class Lists(NamedTuple):
    lists: list[list[Row]]
    whole: bool


def read_rows(answer: str) -> Rows:
    """Returns the rows of all lists in an answer. Lists without a row, such as `[1]` for a footnote, do not count.

    Raises ValueError where the answer holds no list.
    """
    lists, whole = read_lists(answer)
    rows = [row for each in lists if any(each) for row in each] or lists[0]
    return Rows([row for row in rows if row], rows.count(()), whole)


def read_lists(answer: str) -> Lists:
    """Returns the lists that stand beside each other in an answer.

    They may be JSON or Python, of strings, tuples, lists or objects. Words and code fences around them are ignored.
    Where a list breaks off or is not well-formed, the rows that are whole are returned as one list.

    Raises ValueError where the answer holds no list.
    """
    whole = len(answer) <= _LONGEST
    answer = _THOUGHT.sub("", answer[:_LONGEST]).strip()
    if answer.lower().strip(".") == "none":
        return Lists([[]], whole)
    for text in dict.fromkeys((answer, answer.translate(_QUOTES))):
        lists, closed = _lists(text)
        if lists and closed:
            return Lists(lists, whole)
    rows = [_row(_literal(f"({match[1]})")) for match in _ROW.finditer(answer.translate(_QUOTES))]
    if not rows and not lists:
        raise ValueError("it holds no list")
    return Lists([rows] if rows else lists, False)


def _lists(text: str) -> tuple[list[list[Row]], bool]:
    """Returns the lists, and whether all that could be one is read and ends."""
    lists: list[list[Row]] = []
    depth = start = stop = broken = 0
    while token := (_TOKEN.search(text, stop) if depth else _OPEN.search(text, stop)):
        stop = token.end()
        if token[0] == "[":
            start = start if depth else token.start()
            depth += 1
        elif token[0] == "]":
            depth -= 1
            if depth:
                continue
            found = _literal(text[start:stop])
            if isinstance(found, list):
                lists.append([_row(item) for item in found])
            broken += found is None and any(quote in text[start:stop] for quote in "\"'")
    return lists, not depth and not broken


def _literal(text: str) -> Any:
    """Returns the value of JSON or of a Python literal, None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _row(item: Any) -> Row:
    """Returns the strings of one row, none where it is malformed."""
    if isinstance(item, str):
        return (item,)
    if isinstance(item, dict):
        item = _of_object(item)
    if not isinstance(item, (list, tuple)) or not item or not isinstance(item[0], str):
        return ()
    types = [each for part in item[1:] for each in (part if isinstance(part, (list, tuple)) else [part])]
    return (item[0], *types) if all(isinstance(each, str) for each in types) else ()


def _of_object(item: dict[Any, Any]) -> Any:
    names = [item[key] for key in _NAMES if key in item]
    types = [item[key] for key in _TYPES if key in item]
    if names:
        return [names[0], *types[:1]]
    return next(iter(item.items())) if len(item) == 1 else None  # {"Ada": "person"}
