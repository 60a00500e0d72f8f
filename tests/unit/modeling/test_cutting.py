"""Tests the cutting of texts into words, sub-words and windows."""

import dataclasses

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.cutting import cut_text, cut_texts
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.modeling.words import Words
from spanlake.text import word_offsets

CONFIG = ModelConfig(
    encoder={"model_type": "bert", "max_position_embeddings": 512},
    hidden_size=8,
    span_head="paper",
    entity_token="[ENT]",
    separator_token="[SEP]",
    entity_token_id=6,
    max_width=3,
    max_words=40,
)


@pytest.fixture
def prompts() -> PromptTokenizer:
    """A tokenizer that spells words in the letters a and b."""
    pieces = ["[UNK]", "a", "b", "##a", "##b", ".", "[ENT]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PromptTokenizer(tokenizer, entity_token="[ENT]", separator_token="[SEP]", entity_token_id=6)


def listed(words: Words) -> list[list[int]]:
    return [words[i : i + 1].ids.tolist() for i in range(len(words))]


def test_words_are_kept_one_after_the_other() -> None:
    words = Words.of([(1, 2), (), (3,), (4, 5, 6)])
    assert listed(words) == [[1, 2], [], [3], [4, 5, 6]] and len(words) == 4
    assert listed(words[1:3]) == [[], [3]] and listed(words[2:99]) == [[3], [4, 5, 6]] and len(words[3:1]) == 0
    assert listed(words.without_empty()) == [[1, 2], [3], [4, 5, 6]]
    assert listed(words.clipped(2)) == [[1, 2], [], [3], [4, 5]] and words.clipped(3) is words
    assert listed(words[2:].clipped(1)) == [[3], [4]]
    assert listed(Words.of([])) == [] and len(Words.of([]).clipped(1)) == 0


def test_words_that_the_tokenizer_cannot_see_are_left_out_with_their_offsets(prompts: PromptTokenizer) -> None:
    prompts.words(["\u200b"])
    cut = cut_text("ab \u200b ba", prompts)
    seen = listed(prompts.words(["ab", "\u200b", "ba"]))
    assert listed(cut.words) == [ids for ids in seen if ids]
    assert len(cut.offsets) == len(cut.words)
    assert cut.offsets[0].tolist() == [0, 2] and cut.offsets[-1].tolist() == [5, 7]


@pytest.mark.parametrize("room", [9, 25, 100])
def test_windows_hold_every_span_and_respect_their_limits(prompts: PromptTokenizer, room: int) -> None:
    text = " ".join("ab" * (1 + i % 3) + ("." if i % 5 == 0 else "") for i in range(150)) + " " + "a" * 300
    cut = cut_text(text, prompts)
    assert len(cut.words) == len(word_offsets(text))
    words, windows = cut.windows(room, CONFIG)
    assert words.lengths.max() <= room and len(words) == len(cut.words)
    assert len(windows) > 3
    for window in windows:
        part = words[window.first : window.stop]
        assert len(part) <= CONFIG.max_words and len(part.ids) <= room
    for first in range(len(words)):
        for last in range(first, min(first + CONFIG.max_width, len(words))):
            (own,) = [w for w in windows if w.own_from <= first + last < w.own_to]
            if len(words[first : last + 1].ids) <= room // 2:
                assert own.first <= first and last < own.stop


def test_a_text_that_fits_is_one_window(prompts: PromptTokenizer) -> None:
    config = dataclasses.replace(CONFIG, max_words=384)
    cut = cut_text("ab. ab. " * 30, prompts)
    _, windows = cut.windows(500, config)
    assert [(window.first, window.stop) for window in windows] == [(0, len(cut.words))]
    assert cut_text(" \n", prompts).windows(500, config)[1] == []


def test_texts_are_cut_together_as_they_are_cut_alone(prompts: PromptTokenizer) -> None:
    texts = ["", "ab ba-b", " \n", "-a- a--b", "\ud800b \u200b\udc00", "ab", "ż a\u0308\r\n\U0001f600."]
    for text, cut in zip(texts, cut_texts(texts, prompts), strict=True):
        alone = cut_text(text, prompts)
        assert cut.text == text and cut.offsets.tolist() == alone.offsets.tolist()
        assert listed(cut.words) == listed(alone.words)
    assert cut_texts([], prompts) == []
