"""Annotated texts -> training batches.

Shapes: B texts, W words, K span width, C types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spanlake.data.examples import Example
from spanlake.data.sampling import Sampling, sample_types
from spanlake.modeling.tokens import Batch, PromptTokenizer
from spanlake.text import replace_surrogates, word_offsets


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    words: tuple[tuple[int, ...], ...]  # the sub-words of each word
    spans: tuple[tuple[int, int, str], ...]  # first word, last word, label
    inventory: tuple[str, ...]  # where its negatives come from: those it states, or every type of its data set

    @property
    def tokens(self) -> int:
        return sum(map(len, self.words))


@dataclass
class Unusable:
    """Mentions that training cannot use, counted so that they can be reported."""

    wider_than_max_width: int = 0
    inside_a_word: int = 0  # begins or ends within a word
    texts_too_long: int = 0


def tokenize(
    examples: Sequence[Example],
    inventory: Sequence[str],
    tokenizer: PromptTokenizer,
    *,
    max_width: int,
    max_tokens: int,
    unusable: Unusable,
) -> list[TokenizedExample]:
    """Cuts texts into words and sub-words and places their mentions on words. Texts without words are left out."""
    types = tuple(inventory)
    tokenized = []
    for example in examples:
        offsets = word_offsets(example.text)
        text = replace_surrogates(example.text)
        cut = tokenizer.words([text[start:end] for start, end in offsets])
        seen = [i for i, ids in enumerate(cut) if ids]
        if not seen:
            continue
        if sum(len(cut[i]) for i in seen) > max_tokens:
            unusable.texts_too_long += 1
            continue
        first = {int(offsets[i, 0]): place for place, i in enumerate(seen)}
        last = {int(offsets[i, 1]): place for place, i in enumerate(seen)}
        spans = []
        for mention in example.mentions:
            start, end = first.get(mention.start), last.get(mention.end)
            if start is None or end is None:
                unusable.inside_a_word += 1
            elif end - start >= max_width:
                unusable.wider_than_max_width += 1
            else:
                spans.append((start, end, mention.label))
        tokenized.append(TokenizedExample(tuple(cut[i] for i in seen), tuple(spans), example.negatives or types))
    return tokenized


def plan_epoch(
    lengths: Sequence[int], batch_tokens: int, max_texts: int, rng: np.random.Generator, pool: int = 2048
) -> Iterator[list[int]]:
    """Every example once, in batches of near-equal length whose padded sub-words stay within `batch_tokens`.

    `pool` examples at a time are sorted by length, which keeps batches dense and their order random.
    """
    order = rng.permutation(len(lengths))
    for at in range(0, len(order), pool):
        by_length = sorted(order[at : at + pool].tolist(), key=lambda i: lengths[i])
        batches: list[list[int]] = [[]]
        for i in by_length:
            if batches[-1] and (lengths[i] * (len(batches[-1]) + 1) > batch_tokens or len(batches[-1]) == max_texts):
                batches.append([])
            batches[-1].append(i)
        yield from (batches[i] for i in rng.permutation(len(batches)))


def training_batch(
    examples: Sequence[TokenizedExample],
    tokenizer: PromptTokenizer,
    sampling: Sampling,
    *,
    max_width: int,
    pad_id: int,
    rng: np.random.Generator,
) -> tuple[Batch, torch.Tensor]:
    """A batch with freshly sampled types, and its targets [B, W, K, C] float32."""
    rows, places = [], []
    for example in examples:
        names, place = sample_types([label for *_, label in example.spans], example.inventory, sampling, rng)
        rows.append((tokenizer.prompt([tokenizer.label(name) for name in names]), example.words))
        places.append(place)
    batch = tokenizer.collate(rows, pad_id)
    targets = torch.zeros(len(rows), batch.word_positions.shape[1], max_width, batch.type_positions.shape[1])
    for row, (example, place) in enumerate(zip(examples, places, strict=True)):
        for start, end, label in example.spans:
            if label in place:
                targets[row, start, end - start, place[label]] = 1.0
    return batch, targets
