"""Plans forward passes: rows, each a window of words with a group of labels, and batches of rows of similar length.

Nothing is cut off. A text that is too long for one pass is read in overlapping windows, and a label list that is too
long for one prompt is read in groups. Every span of every text is scored for every label exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spanlake.errors import UserError, shown
from spanlake.inference.settings import Settings
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.cutting import CutText
from spanlake.modeling.tokens import ModelTokenizer, Prompt
from spanlake.modeling.words import Words

# The labels are split into groups where they would take more than this share of a pass.
_PROMPT_SHARE = 0.5


@dataclass(frozen=True)
class LabelGroup:
    prompt: Prompt
    first: int  # index of the group's first label in the settings
    thresholds: tuple[float, ...]  # one per label

    @property
    def count(self) -> int:
        return len(self.thresholds)

    def part(self, first: int, count: int) -> LabelGroup:
        """Returns the group of `count` labels from `first` on."""
        return LabelGroup(self.prompt, self.first + first, self.thresholds[first : first + count])


@dataclass(frozen=True)
class Row:
    """One row of a batch: a window of a text with a label group."""

    text_index: int  # in the texts that are planned together
    first: int  # the window's first word in the text
    stop: int  # the word after the window's last word
    own_from: int  # this row scores the span of the words i..j of the text (inclusive) if own_from <= i + j < own_to
    own_to: int
    words: Words  # the window's words
    group: LabelGroup
    tokens: int  # sub-words, special tokens included


def group_labels(settings: Settings, tokenizer: ModelTokenizer, config: ModelConfig) -> list[LabelGroup]:
    """Returns groups of the labels, in order, as large as the prompt's share of a pass and `max_labels` allow.

    Raises `UserError` for a label so long that a pass has no room for words.
    """
    if not settings.names:
        return []
    room = config.max_tokens - tokenizer.special_tokens
    share = int(room * _PROMPT_SHARE)
    cut = [tokenizer.label(label) for label in settings.prompts]
    groups: list[LabelGroup] = []
    first, size = 0, 1
    for index, ids in enumerate(cut):
        cost = tokenizer.cost(ids)
        if 1 + cost > room - 2 * config.max_width:
            raise UserError(
                f"The label {shown(settings.prompts[index])} has {len(ids)} sub-words; the model reads labels of "
                f"at most {room - 2 * config.max_width - 2}, so shorten it."
            )
        if index > first and (size + cost > share or index - first == config.max_labels):
            groups.append(LabelGroup(tokenizer.prompt(cut[first:index]), first, settings.thresholds[first:index]))
            first, size = index, 1
        size += cost
    groups.append(LabelGroup(tokenizer.prompt(cut[first:]), first, settings.thresholds[first:]))
    return groups


def plan_rows(
    text_index: int,
    cut: CutText,
    groups: Iterable[LabelGroup],
    tokenizer: ModelTokenizer,
    config: ModelConfig,
) -> Iterator[Row]:
    """Yields the rows that score every span of the text against every label group once."""
    for group in groups:
        beside = len(group.prompt.ids) + tokenizer.special_tokens
        words, windows = cut.windows(config.max_tokens - beside, config)
        for first, stop, own_from, own_to in windows:
            part = words[first:stop]
            yield Row(text_index, first, stop, own_from, own_to, part, group, len(part.ids) + beside)


def plan_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Returns batches of rows of similar length.

    In a batch, the number of rows times the longest row is at most `batch_tokens`, unless the batch is a single row.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if not batches or batches[-1][0].tokens * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
