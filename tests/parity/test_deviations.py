"""Where we differ from the published library on purpose, and what shows that ours is right."""

from __future__ import annotations

import json

import pytest
import regex
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from spanlake.modeling.pretrained import pretrained_tokenizer
from spanlake.text import word_offsets

LABELS = ["person", "organization", "location", "date"]
PARAGRAPH = (
    "Alain Farley works at McGill University in Montreal. Marie Curie won the Nobel Prize in 1903! "
    "FC Barcelona lost to Real_Madrid; Dr. O'Neill's patients were treated in São Paulo (see Annex B). "
)


def places(found):
    return [entity[:4] for entity in found]


@pytest.mark.parametrize("family", ["deberta", "bert"])
def test_a_long_text_has_the_entities_of_its_every_part(request, workshop, changed, family):
    """The library reads the first max_len words, and a tokenizer with a limit cuts those that it lets through.

    We read windows. Each scores as the library scores the window's text by itself, no word is left unread, and every
    span is scored in one window.
    """
    oracle = request.getfixturevalue(family)
    text = PARAGRAPH * 30
    words = word_offsets(text)
    assert len(words) > 1000
    ours = workshop.ours(changed(oracle.directory, max_len=100))
    rows = ours.rows(text, LABELS)
    assert len(rows) > 5
    spans = 0
    for row, logits in zip(rows, ours.logits(rows), strict=True):
        last = row.first + len(row.words) - 1
        theirs = oracle.logits(text[words[row.first, 0] : words[last, 1]], LABELS)
        count, width, _ = theirs.shape
        assert count == len(row.words)
        real = torch.arange(count).view(-1, 1) + torch.arange(width) < count
        torch.testing.assert_close(logits[real], theirs[real], rtol=0, atol=1e-4)
        centre = 2 * (row.first + torch.arange(count).view(-1, 1)) + torch.arange(width)
        spans += int((real & (centre >= row.own_from) & (centre < row.own_to)).sum())
    width = ours.package.config.max_width
    assert spans == len(words) * width - width * (width - 1) // 2

    found = ours.entities([text], LABELS, threshold=0.6)[0]
    assert all(text[entity.start : entity.end] == entity.text for entity in found)
    assert found[-1].end > 0.99 * len(text)
    cut = oracle.entities([text], LABELS, threshold=0.6)[0]
    assert cut[-1].end < 0.5 * len(text)


def test_a_text_in_one_window_scores_as_without_any_limit(workshop, deberta, changed):
    """More words than max_len, but told to read them at once: what the library gives where it does not truncate."""
    text = PARAGRAPH * 12
    wide = changed(deberta.directory, max_len=10_000)
    theirs = type(deberta)(wide).logits(text, LABELS)
    ours = workshop.ours(wide)
    (row,) = ours.rows(text, LABELS)
    words, width, _ = theirs.shape
    assert words > 384
    real = torch.arange(words).view(-1, 1) + torch.arange(width) < words
    torch.testing.assert_close(ours.logits([row])[0][real], theirs[real], rtol=0, atol=1e-4)


def test_a_label_list_that_leaves_little_room_is_read_in_groups(workshop, bert):
    """Where the prompt takes more than half of what the encoder reads at once. Each group scores as the library scores
    those labels by themselves; of all together it cuts the text's last words off, for the encoder has no more room.
    """
    labels = [f"{first}{second}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"]
    ours = workshop.ours(bert.directory)
    rows = ours.rows(PARAGRAPH, labels)
    assert len(rows) == len({row.group.first for row in rows}) > 1
    assert sum(row.group.count for row in rows) == len(labels)
    whole = bert.logits(PARAGRAPH, labels)
    for row, logits in zip(rows, ours.logits(rows), strict=True):
        own = slice(row.group.first, row.group.first + row.group.count)
        theirs = bert.logits(PARAGRAPH, labels[own])
        torch.testing.assert_close(logits[:, 0], theirs[:, 0], rtol=0, atol=1e-4)
        assert (whole[-1, 0, own] - theirs[-1, 0]).abs().max() > 0.1


INVISIBLE = ["\u200b", "\u200d", "\ufeff", "\u2066", "\x00", "\x07", "\u00ad", "\u0301"]


@pytest.mark.parametrize("invisible", INVISIBLE, ids=ascii)
def test_characters_that_the_tokenizer_drops_move_no_entity(workshop, bert, invisible):
    """A word without sub-words shifts every later word of the library's by one, and the last one reads as zeros.

    With a space in such a character's place, offsets stay as they are and the library is right: that is what we find.
    An entity that ends before a mark takes it in, for a reader sees one character.
    """
    pieces = ("Alain Farley works ", "at McGill ", " University in", "Montreal, Quebec since ", "May 1903.")
    text = invisible.join(pieces)
    spaced = " ".join(pieces)
    ours = workshop.ours(bert.directory).entities([text], LABELS, threshold=0.1, nested=True)[0]
    right = bert.entities([spaced], LABELS, threshold=0.1, flat_ner=False)[0]
    ends = [cluster.end() for cluster in regex.finditer(r"\X", text)]
    assert [each[:3] for each in ours] == [
        (each.start, min(end for end in ends if end >= each.end), each.label) for each in right
    ]
    assert [each.score for each in ours] == pytest.approx([each.score for each in right], abs=1e-5)
    assert len(ours) > 3
    assert all(text[each.start : each.end] == each.text for each in ours)
    shifted = bert.entities([text], LABELS, threshold=0.1, flat_ner=False)[0]
    assert [each[:3] for each in ours] != [each[:3] for each in shifted]  # else there is nothing to be right about


def test_a_lone_surrogate_is_read_as_a_replacement_character(workshop, deberta):
    text = "Alain \ud800 Farley works at McGill."
    found = workshop.ours(deberta.directory).entities([text], LABELS, threshold=0.2)[0]
    theirs = deberta.entities([text.replace("\ud800", "\ufffd")], LABELS, threshold=0.2)[0]
    assert [(each.start, each.end, each.label) for each in found] == [each[:3] for each in theirs]
    assert len(found) > 2
    with pytest.raises(Exception):  # noqa: B017, PT011 - the library has no answer at all
        deberta.entities([text], LABELS)


@pytest.fixture(scope="module")
def sentencepiece_directory(tmp_path_factory):
    """A tokenizer as DeBERTa-v3's repository holds it: spm.model and tokenizer_config.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PARAGRAPH.split("! ") * 5),
        model_prefix=str(directory / "spm"),
        vocab_size=120,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )
    settings = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "vocab_type": "spm"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_a_sentencepiece_tokenizer_keeps_its_normalisation(sentencepiece_directory):
    """The transformers library, from version 5 on, drops it, and compatibility characters become unknown."""
    ours = pretrained_tokenizer(str(sentencepiece_directory))
    theirs: Tokenizer = AutoTokenizer.from_pretrained(sentencepiece_directory).backend_tokenizer

    def ids(tokenizer, word):
        return tokenizer.encode([word], is_pretokenized=True).ids

    for word in ["Farley", "São", "1903", "(", "'", "Real_Madrid", "日本", "👩‍🚀"]:
        assert ids(ours, word) == ids(theirs, word), word
    for word, plain in {"Ｆarley": "Farley", "loﬆ": "lost", "…": "...", "１９０３": "1903", "\u200bin": "in"}.items():
        assert ids(ours, word) == ids(ours, plain)
        assert ids(theirs, word) != ids(theirs, plain)
    assert ours.get_vocab_size() == theirs.get_vocab_size()
    assert ours.token_to_id("[MASK]") == theirs.token_to_id("[MASK]") == ours.get_vocab_size() - 1


def test_a_checkpoint_with_a_sentencepiece_tokenizer(sentencepiece_directory, deberta, workshop, changed):
    """On plain text the library agrees; of the same in full-width letters only we make the same."""
    built = workshop.build("sentencepiece", sentencepiece_directory)
    files = ("tokenizer.json", "tokenizer_config.json")
    directory = changed(built, without=files, vocab_size=-1, class_token_index=-1)
    theirs, ours = type(deberta)(directory), workshop.ours(directory)
    wide = PARAGRAPH.replace("A", "Ａ").replace("M", "Ｍ").replace("9", "９")
    plain, as_plain = ours.entities([PARAGRAPH, wide], LABELS)
    assert places(plain) == places(theirs.entities([PARAGRAPH], LABELS)[0])
    assert len(plain) > 3
    assert [each[:3] for each in as_plain] == [each[:3] for each in plain]
    assert [each[:3] for each in theirs.entities([wide], LABELS)[0]] != [each[:3] for each in plain]
