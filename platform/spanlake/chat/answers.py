"""Reads the lists that language models answer with, also where they are wrapped in words or not quite well-formed."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
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


class Rows(NamedTuple):
    """The rows of a list: a string, with the types that follow it."""

    rows: list[tuple[str, ...]]
    malformed: int  # rows that are neither strings nor made of strings
    whole: bool  # the list is well-formed to its end


def read_rows(answer: str) -> Rows:
    """Returns the rows of the list in an answer.

    The list may be JSON or Python, of strings, tuples, lists or objects. Words and code fences around it are ignored.
    Of a list that breaks off or is not well-formed, the rows that are whole are returned.

    Raises ValueError where the answer holds no list.
    """
    whole = len(answer) <= _LONGEST
    answer = _THOUGHT.sub("", answer[:_LONGEST]).strip()
    if answer.lower().strip(".") == "none":
        return Rows([], 0, whole)
    for text in dict.fromkeys((answer, answer.translate(_QUOTES))):
        lists = [[_row(item) for item in found] for found in _lists(text)]
        if lists:
            rows = next(filter(any, lists), lists[0])
            return Rows([row for row in rows if row], sum(not row for row in rows), whole)
    rows = [_row(_literal(f"({match[1]})")) for match in _ROW.finditer(answer.translate(_QUOTES))]
    if not rows:
        raise ValueError("it holds no list")
    return Rows([row for row in rows if row], sum(not row for row in rows), False)


def _lists(text: str) -> Iterator[list[Any]]:
    """Yields the lists that stand beside each other in a text."""
    depth = start = stop = 0
    while token := (_TOKEN.search(text, stop) if depth else _OPEN.search(text, stop)):
        stop = token.end()
        if token[0] == "[":
            start = start if depth else token.start()
            depth += 1
        elif token[0] == "]":
            depth -= 1
            found = _literal(text[start:stop]) if depth == 0 else None
            if isinstance(found, list):
                yield found


def _literal(text: str) -> Any:
    """Returns the value of JSON or of a Python literal, None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _row(item: Any) -> tuple[str, ...]:
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
