"""Counts the content of a source of annotated texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from spanlake.data.examples import Example, edges_of_words
from spanlake.splitters.find import Splitter
from spanlake.text import word_offsets


@dataclass
class SourceStatistics:
    name: str
    source: str
    examples: int = 0
    mentions: int = 0
    mentions_in_levels: int = 0  # with more than one type
    examples_without_mentions: int = 0
    types: Counter[str] = field(
        default_factory=Counter
    )  # mentions by type; a mention with several types counts for each
    mention_widths: Counter[int] = field(default_factory=Counter)  # in words
    words: int = 0
    longest_text: int = 0  # words
    longest_mention: int = 0  # words
    dropped: Counter[str] = field(default_factory=Counter)  # mentions given as strings, or their places, by reason
    unusable: Counter[str] = field(default_factory=Counter)  # mentions that no span can represent, kept for scoring
    bad_records: int = 0
    first_bad: list[str] = field(default_factory=list)
    files_not_read: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        return self.examples + self.bad_records

    def add(self, example: Example, max_width: int, split: Splitter = word_offsets) -> None:
        """Counts a text, which `split` cuts into words."""
        offsets = split(example.text)
        first, last = edges_of_words(example.text, offsets)
        self.examples += 1
        self.mentions += len(example.mentions)
        self.examples_without_mentions += not example.mentions
        self.words += len(offsets)
        self.longest_text = max(self.longest_text, len(offsets))
        for mention in example.mentions:
            self.mentions_in_levels += bool(mention.broader)
            self.types.update(mention.types)
            start, end = first.get(mention.start), last.get(mention.end)
            if start is None or end is None:
                self.unusable["inside_a_word"] += 1
                continue
            width = end - start + 1
            self.mention_widths[width] += 1
            self.longest_mention = max(self.longest_mention, width)
            self.unusable["wider_than_max_width"] += width > max_width

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as plain values for JSON, with the most frequent types first."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["types"] = dict(self.types.most_common())
        values["mention_widths"] = {str(width): self.mention_widths[width] for width in sorted(self.mention_widths)}
        values["unusable"] = {reason: count for reason, count in sorted(self.unusable.items()) if count}
        return values
