"""Lays out words and labels as the encoder's input: `[CLS] [ENT] type … [SEP] words [SEP]`.

Each word and each label is cut into sub-words by itself, so the sub-words of a word depend on the word alone. The cut
can therefore be cached. It also makes offsets safe: a word's vector is found by counting sub-words, and the tokenizer
need not align texts.

Shapes: B texts, T sub-words in the longest, W words in the longest, C labels in the longest prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from spanlake.errors import PackageError, UserError, shown
from spanlake.modeling.transfer import moved
from spanlake.modeling.words import Words
from spanlake.splitters.find import find_splitter
from spanlake.text import IntArray, code_points

# The cache of cut words. It leaves out longer words, which are rare and could fill the memory.
_CACHED_WORDS = 200_000
_CACHED_LENGTH = 64  # code points


@dataclass(frozen=True, eq=False)
class Prompt:
    """The sub-words of `[ENT] type … [SEP]`, and the position of each type's vector among them.

    A model that reads labels apart from the words has no such sub-words, and the positions are those of `labels`.
    """

    ids: tuple[int, ...]
    type_positions: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...] = ()  # the sub-words of labels that are read apart

    @cached_property
    def arrays(self) -> tuple[IntArray, IntArray]:
        """Returns the sub-words and the positions as arrays."""
        return np.array(self.ids, dtype=np.int64), np.array(self.type_positions, dtype=np.int64)


@dataclass
class Batch:
    """The input of one forward pass. Positions past the counts are padding, and point at sub-word 0."""

    input_ids: torch.Tensor  # [B, T] int64
    attention_mask: torch.Tensor  # [B, T] int64
    word_positions: torch.Tensor  # [B, W] int64, the first sub-word of each word
    type_positions: torch.Tensor  # [B, C] int64
    word_counts: list[int]
    type_counts: list[int]

    def to(self, device: torch.device) -> Batch:
        return self.mapped(lambda tensor: moved(tensor, device))

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Returns the batch with every tensor changed."""
        return Batch(
            change(self.input_ids),
            change(self.attention_mask),
            change(self.word_positions),
            change(self.type_positions),
            self.word_counts,
            self.type_counts,
        )


class ModelTokenizer(ABC):
    """Cuts words and labels into sub-words, and lays them out for one family of models. Threads may share it."""

    labels_backend: Tokenizer | None = None  # the tokenizer of labels, where it is another one

    def __init__(self, tokenizer: Tokenizer, splitter: str) -> None:
        """Takes over `tokenizer`. `splitter` is the name of what cuts texts into words.

        Raises `UserError` where the splitter's library is not installed.
        """
        find_splitter(splitter)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend = tokenizer
        self.splitter = splitter
        self._before, self._after = surrounding_tokens(tokenizer)
        self._words: dict[str, tuple[int, ...]] = {}

    @property
    def special_tokens(self) -> int:
        """Returns how many special tokens surround the prompt and the words."""
        return len(self._before) + len(self._after)

    def words(self, words: Sequence[str]) -> Words:
        """Returns the sub-words of words. They are those of U+FFFD for a lone surrogate.

        A word that the tokenizer cannot see, such as a zero-width character, has 0 sub-words.
        """
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        return self.cut(code_points("".join(words)), lengths)

    def cut(self, codes: NDArray[np.uint32], lengths: IntArray) -> Words:
        """Returns the sub-words of words as `words` does.

        codes: the code points of the words without anything between them; lengths: [W], code points of each word.
        """
        readable = np.where(codes & 0xFFFFF800 == 0xD800, np.uint32(0xFFFD), codes)
        edges = np.concatenate(([0], np.cumsum(lengths))) * readable.itemsize
        buffers = [None, pa.py_buffer(edges), pa.py_buffer(readable)]
        places = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers).dictionary_encode()
        # Array.to_numpy would import pandas.
        indices = np.frombuffer(places.indices.buffers()[1], dtype=np.int32)[: len(lengths)]
        distinct = self._as_read(_strings(places.dictionary))
        return Words.of(self._cut_distinct(distinct)).take(indices.astype(np.int64))

    def _as_read(self, words: list[str]) -> list[str]:
        """Returns words of a text as the model reads them."""
        return words

    def _cut_distinct(self, words: list[str]) -> list[tuple[int, ...]]:
        cache = self._words
        found = {word: cache[word] for word in words if word in cache}
        new = [word for word in words if word not in found]
        if new:
            pieces = [[word] for word in new]
            encodings = self.backend.encode_batch(pieces, is_pretokenized=True, add_special_tokens=False)
            cut = {word: tuple(encoding.ids) for word, encoding in zip(new, encodings, strict=True)}
            if len(cache) + len(cut) > _CACHED_WORDS:
                cache = self._words = {}  # a new cache, because another thread may be reading the old one
            cache.update((word, ids) for word, ids in cut.items() if len(word) <= _CACHED_LENGTH)
            found |= cut
        return [found[word] for word in words]

    @abstractmethod
    def label(self, label: str) -> tuple[int, ...]:
        """Returns the sub-words of a label. Raises `UserError` for a label that the model cannot read."""

    @abstractmethod
    def cost(self, label: tuple[int, ...]) -> int:
        """Returns how many sub-words a label takes beside the words of a text."""

    @abstractmethod
    def prompt(self, labels: Sequence[tuple[int, ...]]) -> Prompt:
        """Returns the prompt of labels that `label` has cut."""

    @abstractmethod
    def collate(self, rows: Sequence[tuple[Prompt, Words]], pad_id: int) -> Batch:
        """Returns a batch of the rows. A row is a prompt and its words, each word with at least one sub-word."""

    def lay_out(self, prompts: Sequence[Prompt], words: Sequence[Words], pad_id: int) -> Batch:
        """Returns a batch whose rows are a prompt and words, each word with at least one sub-word."""
        prompt_ids, types = zip(*(prompt.arrays for prompt in prompts), strict=True)
        lead, tail = len(self._before), len(self._after)
        word_counts, type_counts = list(map(len, words)), list(map(len, types))
        start = lead + np.array(list(map(len, prompt_ids)))[:, None]
        stop = start + np.array([len(part.ids) for part in words])[:, None]
        place = np.arange(int(stop.max()) + tail)
        input_ids = np.full((len(words), len(place)), pad_id, dtype=np.int64)
        input_ids[:, :lead] = self._before
        input_ids[(place >= lead) & (place < start)] = np.concatenate(prompt_ids)
        input_ids[(place >= start) & (place < stop)] = np.concatenate([part.ids for part in words])
        input_ids[(place >= stop) & (place < stop + tail)] = self._after * len(words)
        words_at = padded([part.edges[:-1] for part in words], word_counts)
        words_at += np.where(np.arange(words_at.shape[1]) < np.array(word_counts)[:, None], start, 0)
        types_at = padded([positions + lead for positions in types], type_counts)
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy((place < stop + tail).astype(np.int64)),
            torch.from_numpy(words_at),
            torch.from_numpy(types_at),
            word_counts,
            type_counts,
        )


class PromptTokenizer(ModelTokenizer):
    """Cuts words and labels into sub-words, and lays them out for an encoder that reads labels before the words."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        entity_token: str,
        separator_token: str,
        entity_token_id: int,
        type_vector_at_entity_token: bool = True,
        splitter: str = "gliner",
    ) -> None:
        """Takes over `tokenizer`.

        Raises `PackageError` where `tokenizer` does not hold the prompt's two tokens, and `UserError` as
        `ModelTokenizer` does.
        """
        super().__init__(tokenizer, splitter)
        separator_id = tokenizer.token_to_id(separator_token)
        found = tokenizer.token_to_id(entity_token)
        if separator_id is None or found != entity_token_id:
            raise PackageError(
                f"The tokenizer gives {entity_token!r} the number {found} and {separator_token!r} the number "
                f"{separator_id}; the model expects {entity_token_id} for the first and some number for the second."
            )
        self._entity_id = entity_token_id
        self._separator_id = separator_id
        self._vector_offset = 0 if type_vector_at_entity_token else 1
        self._reserved = special_ids(tokenizer) | {entity_token_id, separator_id}

    @property
    def layout(self) -> dict[str, Any]:
        """Returns what `collate` and `prompt` set around sub-words, ready for JSON.

        The vector of a type is read `type_offset` sub-words after its entity token.
        """
        return {
            "before": self._before,
            "after": self._after,
            "entity_id": self._entity_id,
            "separator_id": self._separator_id,
            "type_offset": self._vector_offset,
        }

    def label(self, label: str) -> tuple[int, ...]:
        """Returns the sub-words of a label, at least one.

        Raises `UserError` for a label without visible characters or with one of the tokenizer's reserved tokens.
        """
        [ids] = self._cut_distinct([label])
        check_label(label, ids, self.backend, self._reserved)
        return ids

    def cost(self, label: tuple[int, ...]) -> int:
        return 1 + len(label)

    def prompt(self, labels: Sequence[tuple[int, ...]]) -> Prompt:
        ids: list[int] = []
        positions: list[int] = []
        for label in labels:
            positions.append(len(ids) + self._vector_offset)
            ids.append(self._entity_id)
            ids.extend(label)
        ids.append(self._separator_id)
        return Prompt(tuple(ids), tuple(positions))

    def collate(self, rows: Sequence[tuple[Prompt, Words]], pad_id: int) -> Batch:
        prompts, words = zip(*rows, strict=True)
        return self.lay_out(prompts, words, pad_id)


def check_label(label: str, ids: Sequence[int], tokenizer: Tokenizer, reserved: frozenset[int]) -> None:
    """Raises `UserError` for a label without sub-words, or with one of the `reserved` ones."""
    if not ids:
        raise UserError(f"The label {shown(label)} has no characters that the model can read; use other words.")
    held = next((tokenizer.id_to_token(i) for i in ids if i in reserved), None)
    if held is not None:
        raise UserError(f"The label {shown(label)} holds {held!r}, which the model reserves; choose another label.")


def padded(rows: Sequence[IntArray], counts: Sequence[int], fill: int = 0) -> IntArray:
    """Returns the rows as one array, with `fill` after the end of a row."""
    array = np.full((len(rows), max(counts)), fill, dtype=np.int64)
    array[np.arange(array.shape[1]) < np.array(counts)[:, None]] = np.concatenate(rows)
    return array


def _strings(words: pa.LargeBinaryArray) -> list[str]:
    """Returns strings from an array of words in UTF-32."""
    _, edges, data = words.buffers()
    text = data.to_pybytes().decode("utf-32-le") if data else ""
    places = (np.frombuffer(edges, dtype=np.int64)[: len(words) + 1] // 4).tolist()
    return [text[start:stop] for start, stop in pairwise(places)]


def surrounding_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the special tokens that the tokenizer's post-processor sets before and after a text."""
    encoding = tokenizer.encode(["a"], is_pretokenized=True)
    special = encoding.special_tokens_mask
    if all(special):
        raise PackageError("The tokenizer cannot read the letter 'a'; it is damaged or not a text tokenizer.")
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return encoding.ids[:first], encoding.ids[last:]


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """Returns the tokenizer's token for characters that it cannot spell, or None."""
    model = tokenizer.model
    named: str | None = getattr(model, "unk_token", None)
    if named is not None:
        return named
    number = getattr(model, "unk_id", None)
    if number is not None:
        return tokenizer.id_to_token(number)
    added = tokenizer.get_added_tokens_decoder().values()
    return next((token.content for token in added if "unk" in token.content.lower()), None)


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the numbers of all special tokens except the unknown token, which replaces ordinary characters."""
    unknown = unknown_token(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special and token.content != unknown)
