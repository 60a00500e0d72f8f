"""Makes training batches from annotated texts.

Shapes: P true spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spanlake.data.examples import Example, edges_of_words
from spanlake.data.sampling import SetTypes, Types, sample_levels, sample_types
from spanlake.errors import UserError, shown
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.cutting import CutText, cut_texts
from spanlake.modeling.tokens import Batch, ModelTokenizer, Prompt
from spanlake.modeling.words import Words

# The share of a window that is reserved for the prompt. A text that fills less of the window leaves more.
_PROMPT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A tokenized text, or one window of it."""

    words: Words
    spans: tuple[tuple[int, int, Types], ...]  # first word, last word, types from specific to broad
    absent: tuple[str, ...] = ()  # types that the text states as absent
    elsewhere: tuple[str, ...] = ()  # types that only other parts of its passage mention
    source: int = 0  # the index of its data set
    where: str = ""  # its name in messages

    @property
    def tokens(self) -> int:
        return len(self.words.ids)


def tokenize(
    examples: Sequence[Example],
    tokenizer: ModelTokenizer,
    config: ModelConfig,
    *,
    source: int = 0,
    where: Sequence[str] = (),
) -> list[TokenizedExample]:
    """Cuts texts into words and sub-words, and places their mentions on words. A text without words gives no example.

    A text longer than the model's window gives several examples, and each mention is complete in at least one of them.
    A mention that begins or ends inside a word, or is wider than the widest span, is left out. `where` has the names of
    the texts.
    """
    cuts = cut_texts([example.text for example in examples], tokenizer)
    room = int((config.max_tokens - tokenizer.special_tokens) * (1 - _PROMPT_SHARE))
    found: list[TokenizedExample] = []
    for example, cut, name in zip(examples, cuts, where or [""] * len(examples), strict=True):
        found += _placed(example, cut, room, config, source, name)
    return found


def _placed(
    example: Example, cut: CutText, room: int, config: ModelConfig, source: int, where: str
) -> list[TokenizedExample]:
    first, last = edges_of_words(example.text, cut.offsets)
    spans: list[tuple[int, int, Types]] = []
    unplaced = set[str]()
    for mention in example.mentions:
        start, end = first.get(mention.start), last.get(mention.end)
        if start is not None and end is not None and end - start < config.widest:
            spans.append((start, end, mention.types))
        else:
            unplaced.update(mention.types)
    words, windows = cut.windows(room, config)
    examples = []
    for number, window in enumerate(windows):
        inside = [span for span in spans if window.first <= span[0] and span[1] < window.stop]
        outside = [span for span in spans if span[1] < window.first or window.stop <= span[0]]
        examples.append(
            TokenizedExample(
                words[window.first : window.stop],
                tuple((start - window.first, end - window.first, types) for start, end, types in inside),
                example.negatives,
                tuple(sorted({*example.elsewhere, *_labels(outside)} - _labels(inside) - unplaced)),
                source,
                where if len(windows) == 1 else f"{where}, window {number + 1}",
            )
        )
    return examples


def _labels(spans: Iterable[tuple[int, int, Types]]) -> set[str]:
    return {label for *_, types in spans for label in types}


def plan_epoch(
    lengths: Sequence[int], batch_tokens: int, max_texts: int, rng: np.random.Generator, pool: int = 2048
) -> Iterator[list[int]]:
    """Yields every example once, in batches of near-equal length with at most `batch_tokens` padded sub-words.

    It sorts `pool` examples at a time by length, so that batches have little padding and a random order. The shortest
    example of a batch comes first.
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
    chosen: Sequence[int],
    tokenizer: ModelTokenizer,
    sources: Sequence[SetTypes],
    config: ModelConfig,
    *,
    seed: int,
    step: int,
    frequencies: Mapping[str, int] | None = None,
) -> tuple[Batch, torch.Tensor]:
    """Returns the `chosen` examples of a step as a batch with newly sampled types, and where its true scores are.

    The second is int64 [4, P]: the text, the first word, the width less one, and the type of each true span. A
    token-level model has words in the place of spans, and 0, 1 or 2 (start, end, inside) in the place of widths.

    `examples` are those of all workers, because negatives come from all of them. `sources` are the data sets of the
    examples, and `frequencies` says how often types occur in all data sets. The types of an example depend on the seed,
    the step and its index in `examples`. They do not depend on the worker, or on the other chosen examples.

    Raises `UserError` for a label or description that leaves no room for the words of its text.
    """
    batch_types = sorted({label for example in examples for label in _labels(example.spans)})
    cut: dict[str, tuple[int, ...]] = {}
    rows, places = [], []
    for index in chosen:
        example = examples[index]
        source = sources[example.source]
        own = [types for *_, types in example.spans]
        rng = np.random.default_rng((seed, 2, step, index))
        if source.sampling.levels:
            names, place = sample_levels(own, example.absent, example.elsewhere, source, rng)
        else:
            of_batch = source.sampling.negatives == "batch" and batch_types
            candidates = batch_types if of_batch else example.absent or source.names
            names, place = sample_types(own, candidates, source.sampling, rng, frequencies)
        for name in names:
            if name not in cut:
                cut[name] = tokenizer.label(name)
        prompt = _fitting_prompt(names, cut, tokenizer, config.max_tokens - tokenizer.special_tokens - example.tokens)
        rows.append((prompt, example.words))
        places.append({types: at for types, at in place.items() if at < len(prompt.type_positions)})
    batch = tokenizer.collate(rows, config.pad_token_id)
    true: list[tuple[int, int, int, int]] = []
    for row, (index, place) in enumerate(zip(chosen, places, strict=True)):
        for start, end, types in examples[index].spans:
            if types not in place:
                continue
            at = place[types]
            if config.token_level:
                inside = ((row, word, 2, at) for word in range(start, end + 1))
                true += [(row, start, 0, at), (row, end, 1, at), *inside]
            else:
                true.append((row, start, end - start, at))
    return batch, torch.from_numpy(np.array(true, dtype=np.int64).reshape(-1, 4).T.copy())


def _fitting_prompt(
    names: Sequence[str], cut: Mapping[str, tuple[int, ...]], tokenizer: ModelTokenizer, room: int
) -> Prompt:
    """Returns the prompt of as many first names as fit into `room` sub-words."""
    left, count = room - 1, 0
    for name in names:
        left -= tokenizer.cost(cut[name])
        if left < 0:
            break
        count += 1
    if names and not count:
        raise UserError(
            f"The type {shown(names[0])} has {len(cut[names[0]])} sub-words, and the encoder has room for {room - 2} "
            "in addition to the text; shorten the type, or choose an encoder that reads longer texts."
        )
    return tokenizer.prompt([cut[name] for name in names[:count]])
