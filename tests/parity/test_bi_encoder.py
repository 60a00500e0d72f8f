"""Bi-encoder checkpoints: the same scores and entities as the published library, there and back, and training."""

from __future__ import annotations

import itertools

import pytest
import torch

from spanlake.errors import PackageError, UserError
from spanlake.modeling.gliner_format import read_gliner, write_gliner
from spanlake.package import load_package, open_package, repack
from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

from .conftest import CLOSE, TEXTS, agree_on_entities

LABELS = ["person", "organization", "location", "Sports Team", "a prize for work in science"]


def test_every_span_has_the_same_scores(bi_oracle, workshop):
    ours = workshop.ours(bi_oracle.directory)
    texts = [text for text in TEXTS if text]
    rows = [row for text in texts for row in ours.rows(text, LABELS)]
    for text, mine in zip(texts, ours.logits(rows), strict=True):
        theirs = bi_oracle.logits(text, LABELS)
        if ours.package.config.token_level:
            torch.testing.assert_close(mine.transpose(1, 2), theirs, rtol=0, atol=CLOSE)
            continue
        words, width = mine.shape[:2]
        real = torch.arange(words).view(-1, 1) + torch.arange(width) < words
        torch.testing.assert_close(mine[real], theirs[real], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(("nested", "multi_label"), list(itertools.product((False, True), repeat=2)))
def test_the_same_entities(bi_oracle, workshop, nested, multi_label):
    ours = workshop.ours(bi_oracle.directory)
    compared = agree_on_entities(bi_oracle, ours, TEXTS, LABELS, nested=nested, multi_label=multi_label)
    assert compared > 10


def test_there_and_back_again(bi_oracle, workshop, tmp_path):
    package = workshop.ours(bi_oracle.directory).package
    labels_tokenizer = package.tokenizer.labels_backend
    write_gliner(tmp_path / "written", package.model, package.tokenizer.backend, labels_tokenizer=labels_tokenizer)
    again = type(bi_oracle)(tmp_path / "written")
    assert again.entities(TEXTS, LABELS) == bi_oracle.entities(TEXTS, LABELS)
    read = open_package(str(tmp_path / "written"))
    assert read.config == package.config and read.fingerprint == package.fingerprint
    repack(package, tmp_path / "package", name="apart", int8=False)
    loaded = load_package(tmp_path / "package")
    assert loaded.config == package.config
    assert loaded.tokenizer.labels_backend.to_str() == labels_tokenizer.to_str()


def test_the_prompt_s_tokens_are_words_like_others(bi_oracle, workshop):
    workshop.ours(bi_oracle.directory).entities(["The <<ENT>> of [FLERT] <<SEP>>"], ["person"])


def test_the_loss_of_a_step_is_the_library_s(bi_deberta, workshop):
    package = workshop.ours(bi_deberta.directory).package
    tokenizer, config = package.tokenizer, package.config
    rows = [
        ("Alain Farley works at McGill University", [[0, 1, "person"], [4, 5, "organization"]]),
        ("Marie Curie won the Nobel Prize", [[4, 5, "award"]]),
    ]
    examples = [{"tokenized_text": text.split(), "ner": ner} for text, ner in rows]
    collated = bi_deberta.model._create_data_collator()(examples)
    theirs = bi_deberta.model(alpha=-1, gamma=0, reduction="sum", negatives=1.0, **collated).loss

    labels = ["award", "organization", "person"]  # of the whole batch: each is a negative of the other text
    prompt = tokenizer.prompt([tokenizer.label(label) for label in labels])
    batch = tokenizer.collate([(prompt, tokenizer.words(text.split())) for text, _ in rows], config.pad_token_id)
    assert len(batch.label_ids) == 3  # each is encoded once
    true = [
        (row, first, last - first, labels.index(label))
        for row, (_, ner) in enumerate(rows)
        for first, last, label in ner
    ]
    logits = package.model(batch)
    loss = span_loss(logits, torch.tensor(true).T, batch.word_counts, batch.type_counts, OptimSection())
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_fusion_with_the_text_is_refused(bi_deberta, changed):
    with pytest.raises(PackageError, match="post_fusion_schema .l2l-l2t"):
        read_gliner(changed(bi_deberta.directory, post_fusion_schema="l2l-l2t"))


def test_a_label_that_is_too_long_is_refused(bi_deberta, workshop):
    with pytest.raises(UserError, match="labels of at most 64, so shorten it"):
        workshop.ours(bi_deberta.directory).entities(["x"], ["word " * 70])
