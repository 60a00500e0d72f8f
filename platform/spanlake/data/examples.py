"""Annotated texts, with character offsets in plain text, so that training cuts words exactly as inference does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spanlake.errors import UserError, one_line, shown
from spanlake.text import IntArray, sentence_starts, whole_characters, word_offsets

_SHORTEST_SENTENCE = 3  # words


@dataclass(frozen=True, slots=True)
class Mention:
    """A mention at `text[start:end]`, in code points. `label` is its most specific type."""

    start: int
    end: int
    label: str
    broader: tuple[str, ...] = ()  # its other types, from specific to broad

    @property
    def types(self) -> tuple[str, ...]:
        """Returns all its types, from specific to broad."""
        return (self.label, *self.broader)

    def to_dict(self) -> dict[str, Any]:
        """Returns the mention as the training format has it."""
        return {"start": self.start, "end": self.end, "types": list(self.types)}


@dataclass(frozen=True, slots=True)
class Example:
    text: str
    mentions: tuple[Mention, ...]
    negatives: tuple[str, ...] = ()  # types that the text is known not to mention
    elsewhere: tuple[str, ...] = ()  # if the text is part of a passage: types that only other parts mention


def checked_mention(text: str, start: int, end: int, types: object, reads: object = None) -> Mention:
    """Returns the mention of `text[start:end]`. `types` are those of `mention_of`; `reads` is its text in the record.

    Raises ValueError if the mention is outside the text, has no visible character, or differs from `reads`. Case and
    whitespace may differ.
    """
    if not 0 <= start < end <= len(text):
        raise ValueError(f"mention {start}..{end} outside {len(text)} characters")
    there = text[start:end]
    if not there.split():
        raise ValueError(f"mention {start}..{end} has no visible character")
    if isinstance(reads, str) and reads.casefold().split() != there.casefold().split():
        raise ValueError(f"mention {start}..{end} is said to read {shown(reads)}, but there is {shown(there)}")
    return mention_of(start, end, types)


def checked_label(label: object) -> str:
    """Returns a label. Raises ValueError if it is not a text with visible characters."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the label {shown(label)} is not a text with visible characters")
    return label


def mention_of(start: int, end: int, types: object) -> Mention:
    """Returns a mention of one type, or of a list of types from specific to broad. A repeated type counts once.

    Raises ValueError for other values of `types`.
    """
    labels = [checked_label(label) for label in types] if isinstance(types, (list, tuple)) else [checked_label(types)]
    if not labels:
        raise ValueError(f"mention {start}..{end} has an empty list of types")
    label, *broader = dict.fromkeys(labels)
    return Mention(start, end, label, tuple(broader))


def example_of_words(record: Mapping[str, Any]) -> Example:
    """Returns the example of a record in the training format of the `gliner` library:

    `{"tokenized_text": [word, ...], "ner": [[first, last, label], ...], "negatives"?: [label, ...]}`. Word indexes are
    inclusive. The text is the words joined by single spaces. A label may be a list of types from specific to broad.

    Raises ValueError, TypeError, KeyError or IndexError for a record of another form.
    """
    starts, ends, position = [], [], 0
    for word in record["tokenized_text"]:
        starts.append(position)
        ends.append(position + len(word))
        position += len(word) + 1
    text = " ".join(record["tokenized_text"])
    mentions = []
    for first, last, label in record["ner"]:
        if not 0 <= first <= last < len(starts):
            raise ValueError(f"mention {first}..{last} outside {len(starts)} words")
        if starts[first] == ends[last]:
            raise ValueError(f"mention {first}..{last} is of an empty word")
        mentions.append(checked_mention(text, starts[first], ends[last], label))
    negatives = tuple(map(checked_label, record.get("negatives") or record.get("ner_negatives") or ()))
    return Example(text, tuple(mentions), negatives)


def sentences_of(example: Example) -> list[Example]:
    """Returns the sentences of a text, each as an example.

    Sentences that share a mention stay together, so that no mention is cut. A sentence of one or two words stays with
    the next one, because it is mostly an abbreviation.
    """
    offsets = word_offsets(example.text)
    pieces, begin = [], 0
    for word in np.flatnonzero(sentence_starts(example.text, offsets))[1:].tolist():
        cut = int(offsets[word, 0])
        if word - begin >= _SHORTEST_SENTENCE and not any(m.start < cut < m.end for m in example.mentions):
            pieces.append((begin, word))
            begin = word
    if not pieces:
        return [example]
    pieces.append((begin, len(offsets)))
    return [_part(example, int(offsets[first, 0]), int(offsets[stop - 1, 1])) for first, stop in pieces]


def _part(example: Example, start: int, end: int) -> Example:
    inside = [mention for mention in example.mentions if start <= mention.start and mention.end <= end]
    here = {label for mention in inside for label in mention.types}
    named = {label for mention in example.mentions for label in mention.types}
    return Example(
        example.text[start:end],
        tuple(replace(mention, start=mention.start - start, end=mention.end - start) for mention in inside),
        example.negatives,
        tuple(sorted({*example.elsewhere, *named} - here)),
    )


def edges_of_words(text: str, offsets: IntArray) -> tuple[dict[int, int], dict[int, int]]:
    """Returns the word that begins at each place of a text where one does, and the word that ends there.

    offsets: [W, 2], the words. Words that share a character are edges of an entity only together, as in extraction.
    """
    starts, ends = whole_characters(text, offsets).T.tolist()
    first = {start: word for word, start in reversed([*enumerate(starts)])}
    return first, {end: word for word, end in enumerate(ends)}


def read_sentences(path: Path) -> list[Example]:
    """Returns the examples of a JSON list of `{"sentence", "entities": [{"name", "type", "pos": [start, end]}]}`.

    This is the format of the out-of-domain benchmark (Zaratiana et al. 2023, Table 1).
    Raises `UserError` that names the file and the record of another form.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(records, list):
            raise ValueError(f"it holds a {type(records).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a JSON list of sentences ({one_line(error)}).") from error
    examples = []
    for number, record in enumerate(records):
        try:
            examples.append(example_of_sentence(record))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Record {number} of {path} is not a sentence ({error!r}); each must be "
                '{"sentence", "entities": [{"type", "pos": [start, end]}]}.'
            ) from error
    return examples


def example_of_sentence(record: Mapping[str, Any]) -> Example:
    """Returns the example of one record of `read_sentences`.

    Raises ValueError, TypeError or KeyError for a record of another form.
    """
    text = record["sentence"]
    if not isinstance(text, str):
        raise ValueError(f"sentence {shown(text)}")
    mentions = []
    for entity in record["entities"]:
        start, end = entity["pos"]
        mentions.append(checked_mention(text, start, end, entity["type"], entity.get("name")))
    return Example(text, tuple(mentions))
