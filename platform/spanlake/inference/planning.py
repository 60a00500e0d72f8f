"""Texts -> the rows of forward passes: windows of words beside groups of labels, and batches of near-equal cost.

Nothing is cut off. A text too long for one pass is read in overlapping windows, a label list too long for one prompt in
groups, and every span of every text is scored for every label exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spanlake.errors import UserError, shown
from spanlake.inference.settings import Settings
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.cutting import CutText
from spanlake.modeling.tokens import Prompt, PromptTokenizer
from spanlake.modeling.words import Words

# The share of a pass that the labels may take before they are split into groups.
_PROMPT_SHARE = 0.5


@dataclass(frozen=True)
class LabelGroup:
    prompt: Prompt
    first: int  # index of the group's first label in the settings
    thresholds: tuple[float, ...]  # one per label

    @property
    def count(self) -> int:
        return len(self.thresholds)


@dataclass(frozen=True)
class Row:
    """One text's window beside one label group: one row of a batch."""

    text_index: int  # in the texts being planned
    first: int  # the window's first word in the text
    stop: int  # the word after its last
    own_from: int  # the span (i, j) of the text, inclusive words, is this row's to score if own_from <= i + j < own_to
    own_to: int
    words: Words  # the window's
    group: LabelGroup
    tokens: int  # sub-words, special tokens included


def group_labels(settings: Settings, tokenizer: PromptTokenizer, config: ModelConfig) -> list[LabelGroup]:
    """Groups in label order, as large as the prompt's share of a pass and the model's `max_labels` allow.

    Raises `UserError` for a label that leaves no room for words beside it.
    """
    room = config.max_tokens - tokenizer.special_tokens
    share = int(room * _PROMPT_SHARE)
    cut = [tokenizer.label(label) for label in settings.prompts]
    groups: list[LabelGroup] = []
    first, size = 0, 1
    for index, ids in enumerate(cut):
        cost = len(ids) + 1
        if 1 + cost > room - 2 * config.max_width:
            raise UserError(
                f"The label {shown(settings.prompts[index])} has {len(ids)} sub-words; beside a text the model reads "
                f"at most {room - 2 * config.max_width - 2}, so shorten it."
            )
        if index > first and (size + cost > share or index - first == config.max_labels):
            groups.append(LabelGroup(tokenizer.prompt(cut[first:index]), first, settings.thresholds[first:index]))
            first, size = index, 1
        size += cost
    groups.append(LabelGroup(tokenizer.prompt(cut[first:]), first, settings.thresholds[first:]))
    return groups


def plan_rows(
    text_index: int, cut: CutText, groups: Iterable[LabelGroup], tokenizer: PromptTokenizer, config: ModelConfig
) -> Iterator[Row]:
    """Yields the rows that score every span of the text against every label group once."""
    for group in groups:
        beside = len(group.prompt.ids) + tokenizer.special_tokens
        words, windows = cut.windows(config.max_tokens - beside, config)
        for first, stop, own_from, own_to in windows:
            part = words[first:stop]
            yield Row(text_index, first, stop, own_from, own_to, part, group, len(part.ids) + beside)


def plan_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows of near-equal length together; rows times the longest stay within `batch_tokens`, save for a row alone."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if not batches or batches[-1][0].tokens * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
