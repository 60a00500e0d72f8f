"""Tests the cutting of words and labels into sub-words, and their layout for the encoder."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from spanlake.errors import PackageError, UserError
from spanlake.modeling import tokens as module
from spanlake.modeling.tokens import PromptTokenizer


@pytest.fixture
def backend() -> Tokenizer:
    """A tokenizer that spells words in the letters a to d, and treats the prompt's tokens as ordinary ones."""
    pieces = ["[PAD]", "[UNK]", "a", "b", "c", "d", "##a", "##b", "##c", "##d"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(["<<ENT>>", "<<SEP>>"])
    return tokenizer


@pytest.fixture
def prompts(backend: Tokenizer) -> PromptTokenizer:
    return PromptTokenizer(backend, entity_token="<<ENT>>", separator_token="<<SEP>>", entity_token_id=10)


def pieces(prompts: PromptTokenizer, *words: str) -> list[list[int]]:
    cut = prompts.words(words)
    return [cut[i : i + 1].ids.tolist() for i in range(len(cut))]


def test_words_are_cut_one_by_one(prompts: PromptTokenizer):
    expected = [[2, 7], [3], [], [2, 7], [1]]
    assert pieces(prompts, "ab", "b", " ", "ab", "ż") == expected
    assert pieces(prompts, "ab", "b", " ", "ab", "ż") == expected  # from the cache
    assert pieces(prompts) == []


def test_the_cache_is_bounded_in_words_and_in_their_length(prompts: PromptTokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_CACHED_WORDS", 3)
    for word in ("a", "b", "c", "d", "ab", "abc"):
        assert pieces(prompts, word, "dd") == [[*prompts.label(word)], [5, 9]]
        assert len(prompts._words) <= 3
    long = "a" * (module._CACHED_LENGTH + 1)
    assert pieces(prompts, long, "a") == [[2, *[6] * module._CACHED_LENGTH], [2]]
    assert long not in prompts._words and "a" in prompts._words


def test_a_cached_word_is_not_cut_again(prompts: PromptTokenizer, monkeypatch: pytest.MonkeyPatch):
    prompts.words(["ab", " "])
    monkeypatch.setattr(prompts, "backend", None)
    assert pieces(prompts, " ", "ab") == [[], [2, 7]]


@pytest.mark.parametrize("label", ["<<ENT>>", "a <<SEP>> b", "<<SEP>>"])
def test_the_prompts_tokens_are_reserved_even_where_the_tokenizer_calls_them_ordinary(
    prompts: PromptTokenizer, label: str
):
    with pytest.raises(UserError, match="which the model reserves"):
        prompts.label(label)


def test_unknown_characters_make_a_label_but_blanks_do_not(prompts: PromptTokenizer):
    assert prompts.label("ż") == (1,)
    with pytest.raises(UserError, match="no characters that the model can read"):
        prompts.label(" ")


def test_positions_in_a_batch(prompts: PromptTokenizer):
    prompt = prompts.prompt([prompts.label("ab"), prompts.label("c")])
    short = prompts.prompt([prompts.label("d")])
    batch = prompts.collate([(prompt, prompts.words(["a", "bcd"])), (short, prompts.words(["dd", "b", "c"]))], pad_id=0)
    assert batch.input_ids.tolist() == [[10, 2, 7, 10, 4, 11, 2, 3, 8, 9], [10, 5, 11, 5, 9, 3, 4, 0, 0, 0]]
    assert batch.attention_mask.sum(dim=1).tolist() == [10, 7]
    assert batch.word_positions.tolist() == [[6, 7, 0], [3, 5, 6]]
    assert batch.type_positions.tolist() == [[0, 3], [0, 0]]
    assert (batch.word_counts, batch.type_counts) == ([2, 3], [2, 1])
    assert batch.input_ids.dtype == torch.int64


def test_type_vectors_may_be_read_at_the_token_after(backend: Tokenizer):
    prompts = PromptTokenizer(
        backend,
        entity_token="<<ENT>>",
        separator_token="<<SEP>>",
        entity_token_id=10,
        type_vector_at_entity_token=False,
    )
    assert prompts.prompt([(2, 7), (4,)]).type_positions == (1, 4)


@pytest.mark.parametrize(("entity", "separator", "number"), [("<<ENT>>", "<<SEP>>", 9), ("<<ENT>>", "<<sep>>", 10)])
def test_a_tokenizer_without_the_prompts_tokens_is_refused(
    backend: Tokenizer, entity: str, separator: str, number: int
):
    with pytest.raises(PackageError, match="the model expects"):
        PromptTokenizer(backend, entity_token=entity, separator_token=separator, entity_token_id=number)
