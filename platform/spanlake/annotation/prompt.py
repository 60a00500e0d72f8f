"""Asks a language model for the mentions of a text with types in levels, and reads its answer.

The question is in the spirit of Figure 3 of Zaratiana et al. 2023: no types are given, the model names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from spanlake.chat.answers import Row, read_lists
from spanlake.chat.endpoint import Message
from spanlake.data.examples import Example, Mention
from spanlake.data.mentions import find_mentions
from spanlake.errors import shown
from spanlake.splitters.find import find_splitter

_QUESTION = """Given a passage, your task is to extract all entities and identify their entity types. \
Give each entity one to three types, from the most specific to the broadest, as plain lower-case words that a user \
might search for. Copy each entity from the passage exactly. Then name some types that one could ask about this \
passage and that no entity of it has. The output should be in two lists of the following format:

Entities: [("entity 1", "most specific type", "broader type", "broadest type"), ("entity 2", "type"), ... ]
Absent: ["absent type 1", "absent type 2", ... ]

Passage: """
QUESTION_VERSION = 1  # another question makes other data


class DeadError(Exception):
    """The reason why an answer cannot be training data."""


class Annotation(NamedTuple):
    example: Example
    dropped: Counter[str]  # mentions that the text does not have, by reason


def messages(text: str) -> list[Message]:
    return [
        {"role": "system", "content": "You are a helpful information extraction system."},
        {"role": "user", "content": _QUESTION + text},
    ]


def read_annotation(text: str, answer: str) -> Annotation:
    """Returns the text with the mentions of an answer, at every place where they occur as whole words.

    Raises `DeadError` where the answer holds no list, where it breaks off, because the rest of the text would teach
    that nothing is there, and where the text has none of its mentions.
    """
    try:
        lists, whole = read_lists(answer)
    except ValueError as error:
        raise DeadError(f"the answer cannot be read: {error}") from error
    if not whole:
        raise DeadError("the answer breaks off or is not well-formed")
    typed = [any(len(row) > 1 for row in rows) for rows in lists]  # some models write a list for each type
    entities = [row for rows, has_types in zip(lists, typed, strict=True) if has_types for row in rows]
    others = [rows for rows, has_types in zip(lists, typed, strict=True) if not has_types]
    if not entities and any(lists[0]):
        raise DeadError("no entity of the answer has a type")
    dropped = Counter({"without_type": sum(len(row) == 1 for row in entities), "malformed": entities.count(())})
    named: dict[str, tuple[str, ...]] = {}  # the first types of a string count
    for string, *types in filter(lambda row: len(row) > 1, entities):
        named.setdefault(string, _clean(types))
    strings = [(str(number), string) for number, (string, types) in enumerate(named.items()) if types]
    dropped["without_type"] += len(named) - len(strings)
    found, lost = find_mentions(text, strings, split=find_splitter("unicode"))  # words of every script
    dropped += lost
    levels = list(named.values())
    mentions: dict[tuple[int, int], Mention] = {}
    for mention in found:
        label, *broader = levels[int(mention.label)]
        mentions.setdefault((mention.start, mention.end), replace(mention, label=label, broader=tuple(broader)))
    if entities and not mentions:
        raise DeadError(f"the text has none of the entities of the answer: {shown(list(named))}")
    own = {label for mention in mentions.values() for label in mention.types}
    absent = _clean([row[0] for rows in others for row in rows if len(row) == 1])
    return Annotation(
        Example(text, tuple(mentions.values()), tuple(label for label in absent if label not in own)), +dropped
    )


def _clean(types: Sequence[str] | Row) -> tuple[str, ...]:
    """Returns types in lower case, each once."""
    return tuple(dict.fromkeys(filter(None, (" ".join(label.lower().split()) for label in types))))
