"""Texts -> the rows of forward passes: windows of words beside groups of labels, and batches of near-equal cost.

Nothing is cut off. A text too long for one pass is read in overlapping windows, a label list too long for one prompt in
groups, and every span of every text is scored for every label exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spanlake.errors import UserError, shown
from spanlake.inference.settings import Settings
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import Prompt, PromptTokenizer
from spanlake.text import IntArray, plan_windows, replace_surrogates, sentence_starts, word_offsets

# The share of a pass that the labels may take before they are split into groups.
_PROMPT_SHARE = 0.5
# Words beyond the widest span by which neighbouring windows overlap, for context.
_CONTEXT = 20


@dataclass(frozen=True)
class LabelGroup:
    prompt: Prompt
    first: int  # index of the group's first label in the settings
    thresholds: tuple[float, ...]  # one per label

    @property
    def count(self) -> int:
        return len(self.thresholds)


@dataclass(frozen=True)
class PlannedText:
    text: str
    offsets: IntArray  # [W, 2] code points of the words that the model sees


@dataclass(frozen=True)
class Row:
    """One text's window beside one label group: one row of a batch."""

    text: int  # index in the texts being planned
    first: int  # the window's first word in the text
    stop: int  # the word after its last
    own_from: int  # the span (i, j) of the text, inclusive words, is this row's to score if own_from <= i + j < own_to
    own_to: int
    cut: Sequence[tuple[int, ...]]  # sub-words of all words of the text; shared by its rows
    group: LabelGroup
    tokens: int  # sub-words, special tokens included

    @property
    def words(self) -> Sequence[tuple[int, ...]]:
        """The sub-words of the window's words."""
        return self.cut[self.first : self.stop]


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


def plan_text(text: str, tokenizer: PromptTokenizer) -> tuple[PlannedText, list[tuple[int, ...]]]:
    """The words of a text and their sub-words. Words that the tokenizer cannot see are left out of both."""
    offsets = word_offsets(text)
    readable = replace_surrogates(text)
    starts, ends = offsets.T.tolist()
    cut = tokenizer.words([readable[start:end] for start, end in zip(starts, ends, strict=True)])
    if not all(cut):
        seen = [i for i, ids in enumerate(cut) if ids]
        offsets, cut = offsets[seen], [cut[i] for i in seen]
    return PlannedText(text, offsets), cut


def plan_rows(
    index: int,
    planned: PlannedText,
    cut: Sequence[tuple[int, ...]],
    groups: Iterable[LabelGroup],
    tokenizer: PromptTokenizer,
    config: ModelConfig,
) -> Iterator[Row]:
    """The rows that score every span of the text against every label group once.

    A single word of more sub-words than a window holds is read by its first ones: its vector is that of the first.
    """
    if not cut:
        return
    lengths = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))
    starts = None
    for group in groups:
        beside = len(group.prompt.ids) + tokenizer.special_tokens
        room = config.max_tokens - beside
        tokens = np.minimum(lengths, room)
        clipped = [ids[:room] for ids in cut] if lengths.max() > room else cut
        before = np.concatenate(([0], np.cumsum(tokens)))  # sub-words before each word
        if starts is None and (len(cut) > config.max_words or before[-1] > room):
            starts = sentence_starts(planned.text, planned.offsets)
        windows = plan_windows(
            tokens,
            np.zeros(len(cut), dtype=np.bool_) if starts is None else starts,
            max_words=config.max_words,
            max_tokens=room,
            overlap=min(config.max_width + _CONTEXT, config.max_words - 1),
        )
        for first, stop, own_from, own_to in windows:
            cost = int(before[stop] - before[first]) + beside
            yield Row(index, first, stop, own_from, own_to, clipped, group, cost)


def plan_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows of near-equal length together; rows times the longest stay within `batch_tokens`, save for a row alone."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if not batches or batches[-1][0].tokens * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
