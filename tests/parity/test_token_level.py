"""Token-level checkpoints: the same scores and entities as the published library, in windows too, and training."""

from __future__ import annotations

import itertools

import pytest
import torch

from spanlake.data.batches import tokenize, training_batch
from spanlake.data.examples import Example, Mention
from spanlake.data.sampling import Sampling, SetTypes
from spanlake.errors import PackageError
from spanlake.inference.candidates import join
from spanlake.inference.settings import Settings
from spanlake.modeling.gliner_format import read_gliner, write_gliner
from spanlake.package import load_package, repack
from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

from .conftest import CLOSE, TEXTS, agree_on_entities

LABELS = ["person", "organization", "location", "Sports Team"]


def test_every_word_has_the_same_scores(token_oracle, workshop):
    ours = workshop.ours(token_oracle.directory)
    texts = [text for text in TEXTS if text]
    rows = [row for text in texts for row in ours.rows(text, LABELS)]
    for text, row, mine in zip(texts, rows, ours.logits(rows), strict=True):
        theirs = token_oracle.logits(text, LABELS)  # [W, C, 3]
        torch.testing.assert_close(mine.transpose(1, 2), theirs, rtol=0, atol=CLOSE)
        assert len(row.words) == len(theirs)


@pytest.mark.parametrize(("nested", "multi_label"), list(itertools.product((False, True), repeat=2)))
def test_the_same_entities(token_oracle, workshop, nested, multi_label):
    ours = workshop.ours(token_oracle.directory)
    compared = agree_on_entities(token_oracle, ours, TEXTS, LABELS, nested=nested, multi_label=multi_label)
    assert compared > 10


def test_there_and_back_again(token_oracle, workshop, tmp_path):
    package = workshop.ours(token_oracle.directory).package
    write_gliner(tmp_path / "written", package.model, package.tokenizer.backend)
    again = type(token_oracle)(tmp_path / "written")
    assert again.entities(TEXTS, LABELS) == token_oracle.entities(TEXTS, LABELS)
    model, _ = read_gliner(tmp_path / "written")
    assert model.config == package.config
    repack(package, tmp_path / "package", name="token-level", int8=False)
    assert load_package(tmp_path / "package").config == package.config


def test_spans_across_windows_are_scored_once(deberta_tokens, workshop, changed):
    directory = changed(deberta_tokens.directory, max_len=40)
    extractor = type(workshop.ours(deberta_tokens.directory))(directory).extractor
    width, text = extractor.package.config.max_width, "Marie Curie won the Nobel Prize in Physics. " * 12
    [(cut, rows)] = extractor.plan([(0, text, Settings.make(["person"], 0.0))])
    assert width == 10 and len(rows) > 2
    found = join([extractor.scorer.submit(extractor.scorer.prepare([row])).result() for row in rows])
    spans = list(zip(found.start.tolist(), found.end.tolist(), strict=True))
    assert len(spans) == len({*spans})
    words = len(cut.offsets)
    assert {(i, j) for i in range(words) for j in range(i, min(i + width, words))} <= {*spans}
    assert max(end - start for start, end in spans) > 2 * width  # wider spans too, where one window holds them


def test_the_loss_of_a_step_is_the_library_s(deberta_tokens, workshop):
    package = workshop.ours(deberta_tokens.directory).package
    tokenizer, labels = package.tokenizer, ["award", "organization", "person"]
    text = "Alain Farley works at McGill University in Montreal"
    row = {"tokenized_text": text.split(), "ner": [[0, 1, "person"], [4, 7, "organization"]], "ner_labels": labels}
    collated = deberta_tokens.model._create_data_collator()([row])
    theirs = deberta_tokens.model(alpha=-1, gamma=0, reduction="sum", negatives=1.0, **collated).loss

    mentions = (Mention(0, 12, "person"), Mention(22, 51, "organization"))
    [example] = tokenize([Example(text, mentions)], tokenizer, package.config)
    types = SetTypes(Sampling(drop_types=False, negatives="own"), dict.fromkeys(labels, 1))
    sampled, sampled_true = training_batch([example], [0], tokenizer, [types], package.config, seed=1, step=1)
    assert sampled_true[2].bincount().tolist() == [2, 2, 6]  # starts, ends, words inside
    prompt = tokenizer.prompt([tokenizer.label(label) for label in labels])
    batch = tokenizer.collate([(prompt, example.words)], 0)
    true: list[tuple[int, int, int, int]] = []  # text, word, part, type
    for first, last, column in ((0, 1, 2), (4, 7, 1)):
        inside = [(0, word, 2, column) for word in range(first, last + 1)]
        true += [(0, first, 0, column), (0, last, 1, column), *inside]
    loss = span_loss(
        package.model(batch), torch.tensor(true).T, batch.word_counts, batch.type_counts, OptimSection(), True
    )
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert sampled.word_counts == batch.word_counts


def test_span_representations_are_refused(deberta_tokens, changed):
    with pytest.raises(PackageError, match="represent_spans true"):
        read_gliner(changed(deberta_tokens.directory, represent_spans=True))
