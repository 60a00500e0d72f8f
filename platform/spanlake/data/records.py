"""Parses one record in any of the formats into an annotated text. The keys of a record show its format.

conversations  `{"conversations": [{"from", "value"}, ...]}`: Pile-NER (Zhou et al. 2024, UniversalNER)
gliner         `{"tokenized_text": [word, ...], "ner": [[first, last, label], ...], "negatives"?: [label, ...]}`
tagged         `{"tokens": [word, ...], "ner_tags": [tag, ...]}`, tags by name or by number; BIO, BIOES, BILOU or IO;
               for nested mentions, each word has a list with one tag for each level
spans          `{"tokens": [word, ...], "entities": [{"type", "start", "end"}, ...]}`, word numbers, end exclusive
sentences      `{"sentence", "entities": [{"type", "pos": [start, end]}, ...]}`
prepared       `{"text", "mentions": [{"start", "end", "types"}, ...], "negatives"?: [label, ...]}`; a mention may be
               a list of its three values, `label` may replace `types`, and `absent` may replace `negatives`

In all formats but conversations and tagged, a list of types from specific to broad may replace a label.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from spanlake.data.examples import Example, checked_label, checked_mention, example_of_sentence, example_of_words
from spanlake.data.mentions import find_mentions
from spanlake.data.tags import check_tags, spans_of_tags
from spanlake.errors import one_line, shown
from spanlake.splitters.find import find_splitter

Format = Literal["auto", "conversations", "gliner", "tagged", "spans", "sentences", "prepared"]

TOKEN_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels")

_QUESTION = re.compile(r"\s*what describes (.+) in the text\s*\?\s*", re.IGNORECASE | re.DOTALL)
_LEAD = "Text:"


class NoExample(Exception):
    """The reason why a record is not an annotated text."""


@dataclass(frozen=True)
class Parsed:
    example: Example
    dropped: Counter[str] = field(default_factory=Counter)  # mentions without a place in the text, by reason


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    form: Format = "auto"
    splitter: str = "gliner"  # mentions that are given as strings are found at the edges of its words
    tag_names: tuple[str, ...] = ()  # the names of tags that are numbers


def parse_record(record: Any, reading: Reading = Reading()) -> Parsed:  # noqa: B008 (it is frozen)
    """Returns the annotated text of a record.

    Raises `NoExample` for a record in another format than `reading` asks for, or in an unknown format.
    """
    if not isinstance(record, Mapping):
        raise NoExample(f"it is a {type(record).__name__}, not an object with keys")
    found = _form_of(record)
    if found is None:
        raise NoExample(f"its keys {shown(sorted(map(str, record)))} do not match any format: it has no mentions")
    if reading.form not in ("auto", found):
        raise NoExample(f"it has the format {found}, not {reading.form}")
    try:
        parsed = _PARSERS[found](record, reading)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise NoExample(kind + one_line(error)) from error
    if not parsed.example.text.strip():
        raise NoExample("its text is empty")
    return parsed


def _form_of(record: Mapping[str, Any]) -> str | None:
    if "conversations" in record:
        return "conversations"
    if "tokenized_text" in record:
        return "gliner"
    if "mentions" in record:
        return "prepared"
    if "entities" in record:
        return "spans" if _column(record, TOKEN_COLUMNS) else "sentences"
    return "tagged" if _column(record, TOKEN_COLUMNS) and _column(record, TAG_COLUMNS) else None


def _column(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _conversation(record: Mapping[str, Any], reading: Reading) -> Parsed:
    turns = record["conversations"]
    values = [turn["value"] for turn in turns]
    if [turn["from"] for turn in turns] != ["human", "gpt"] * (len(turns) // 2) or not turns:
        raise ValueError("its turns do not alternate between human and gpt")
    if not values[0].startswith(_LEAD):
        raise ValueError(f"its first turn is {shown(values[0])}, which does not begin with {_LEAD!r}")
    text = values[0][len(_LEAD) :].removeprefix(" ")
    wanted: list[tuple[str, str]] = []
    negatives = []
    for question, answer in zip(values[2::2], values[3::2], strict=True):
        asked = _QUESTION.fullmatch(question)
        if asked is None:
            raise ValueError(f"{shown(question)} is not a question of the form 'What describes … in the text?'")
        label, strings = asked[1].strip(), json.loads(answer)
        if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
            raise ValueError(f"the answer {shown(answer)} is not a list of texts")
        wanted += [(label, string) for string in strings]
        if not strings:
            negatives.append(label)
    mentions, dropped = find_mentions(text, wanted, split=find_splitter(reading.splitter))
    answered = {label for label, _ in wanted}
    return Parsed(Example(text, mentions, tuple(label for label in negatives if label not in answered)), dropped)


def _gliner(record: Mapping[str, Any], _: Reading) -> Parsed:
    return Parsed(example_of_words(record))


def _tagged(record: Mapping[str, Any], reading: Reading) -> Parsed:
    words = list(record[_column(record, TOKEN_COLUMNS) or ""])
    tags = list(record[_column(record, TAG_COLUMNS) or ""])
    if len(words) != len(tags):
        raise ValueError(f"it has {len(words)} words but {len(tags)} tags")
    rows = [tag if isinstance(tag, list) else [tag] for tag in tags]
    if len({*map(len, rows)}) > 1:
        raise ValueError("its words have different numbers of tags")
    spans: dict[tuple[int, int, str], None] = {}
    for level in zip(*rows, strict=True):
        names = [_tag_name(tag, reading.tag_names) for tag in level]
        check_tags(names)
        spans |= dict.fromkeys(spans_of_tags(names))
    return Parsed(example_of_words({"tokenized_text": words, "ner": spans}))


def _spans(record: Mapping[str, Any], _: Reading) -> Parsed:
    spans = [(span["start"], span["end"] - 1, span["type"]) for span in record["entities"]]
    return Parsed(example_of_words({"tokenized_text": record[_column(record, TOKEN_COLUMNS) or ""], "ner": spans}))


def _tag_name(tag: Any, names: Sequence[str]) -> str:
    if isinstance(tag, str):
        return tag
    if not isinstance(tag, int):
        raise ValueError(f"the tag {shown(tag)} is neither a name nor a number")
    if not names:
        raise ValueError(f"the tag {tag!r} is a number and the data set does not name its tags")
    if not 0 <= tag < len(names):
        raise ValueError(f"the tag {tag!r} is not among the {len(names)} tags that the data set names")
    return names[tag]


def _sentence(record: Mapping[str, Any], _: Reading) -> Parsed:
    return Parsed(example_of_sentence(record))


def _prepared(record: Mapping[str, Any], _: Reading) -> Parsed:
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f"its text is {shown(text)}")
    mentions = []
    for mention in record["mentions"] or ():
        start, end, types, reads = _parts(mention)
        mentions.append(checked_mention(text, start, end, types, reads))
    negatives = record.get("negatives") or record.get("absent") or ()
    return Parsed(Example(text, tuple(mentions), tuple(map(checked_label, negatives))))


def _parts(mention: Any) -> tuple[int, int, Any, Any]:
    """Returns start, end, type or types, and the text of the mention in the record."""
    if isinstance(mention, Mapping):
        types = mention["types"] if "types" in mention else mention["label"]
        return mention["start"], mention["end"], types, mention.get("text")
    start, end, types = mention
    return start, end, types, None


_PARSERS: dict[str, Callable[[Mapping[str, Any], Reading], Parsed]] = {
    "conversations": _conversation,
    "gliner": _gliner,
    "tagged": _tagged,
    "spans": _spans,
    "sentences": _sentence,
    "prepared": _prepared,
}
assert {*_PARSERS, "auto"} == {*get_args(Format)}
