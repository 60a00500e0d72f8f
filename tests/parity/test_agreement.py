"""Where the published library is right, we give what it gives: the same scores, and the same entities."""

from __future__ import annotations

import itertools

import pytest
import torch

THRESHOLDS = (0.2, 0.5, 0.8)
CLOSE = 1e-4  # float32, sums in another order

LABEL_SETS = (
    ["person", "organization", "location"],
    ["date"],
    ["Award", "award", "sports team", "name of a chemical compound", "person", "state-of-the-art", "x", "ω"],
    [chr(ord("a") + i % 26) + "xyz"[: i // 26] for i in range(45)],  # more labels than a vector has dimensions
)
TEXTS = [
    "Alain Farley works at McGill University in Montreal.",
    "On 3 May 1997, FC Barcelona beat Real_Madrid 2-1 (after extra time); Marie Curie was not there!",
    "",
    "word",
    "  \n\t ",
    "?",
    "\r\n leading and\u00a0trailing \u3000 space \x0b\n",
    "日本語のテキスト と English, mixed: Köln–Zürich, naïve façade",
    "👩 flew 🚀 to the 🌕… costs €5 or ½ of it ﬁnally",
    "https://example.org/a_b-c?q=1&r=[2] e-mail: o'neill@example.org",
    "supercalifragilisticexpialidocious" * 4 + " _ __ -a- b_c-d",
    "مرحبا بالعالم שלום עולם",
    "[CLS] [SEP] <<ENT>> <<SEP>> <s> [PAD] [MASK] [UNK] ##ing ▁x",
    "The quick brown fox. " * 12,
    "Marie Curie, born in 1867 in Warsaw, won the Nobel Prize in Physics; Lionel Messi did not (so far).",
    "Apple had bought a start-up for $3.5 million on 12 March 2021, the New York Times reported from Quebec.",
    "ZÜRICH AND SÃO PAULO SIGNED A CLIMATE-CHANGE POLICY. zürich and são paulo signed a climate-change policy.",
]


@pytest.mark.parametrize("labels", LABEL_SETS, ids=len)
def test_every_span_of_every_text_has_the_same_score(oracle, ours, labels):
    compared = 0
    texts = [text for text in TEXTS if text.strip()]
    rows = [ours.rows(text, labels) for text in texts]
    assert [len(each) for each in rows] == [1] * len(texts)
    together = ours.logits([row for (row,) in rows])  # padded beside the longest
    for text, (row,), batched in zip(texts, rows, together, strict=True):
        theirs = oracle.logits(text, labels)
        alone = ours.logits([row])[0]
        assert alone.shape == theirs.shape
        words, width, _ = theirs.shape
        real = torch.arange(words).view(-1, 1) + torch.arange(width) < words
        torch.testing.assert_close(alone[real], theirs[real], rtol=0, atol=CLOSE)
        torch.testing.assert_close(batched[real], theirs[real], rtol=0, atol=CLOSE)
        compared += theirs[real].numel()
    assert compared > 150


def agree(oracle, ours, labels, *, threshold, nested=False, multi_label=False):
    """Compares the entities of all texts; returns how many. `labels` are one list, one for each text, or a mapping."""
    mine = ours.entities(TEXTS, labels, threshold=threshold, nested=nested, multi_label=multi_label)
    theirs = oracle.entities(
        TEXTS, labels, threshold=threshold, flat_ner=not nested, multi_label=multi_label, batch_size=5
    )
    assert len(mine) == len(theirs) == len(TEXTS)
    compared = 0
    for i, text in enumerate(TEXTS):
        of_text = labels[i] if isinstance(labels, list) and isinstance(labels[0], list) else labels
        read = list(of_text.values()) if isinstance(of_text, dict) else of_text
        if oracle.decided(text, read, threshold):
            assert [entity[:4] for entity in mine[i]] == [entity[:4] for entity in theirs[i]], text
            assert [each.score for each in mine[i]] == pytest.approx([each.score for each in theirs[i]], abs=CLOSE)
            compared += len(theirs[i])
    return compared


@pytest.mark.parametrize(("nested", "multi_label"), list(itertools.product((False, True), repeat=2)))
def test_the_same_entities(oracle, ours, nested, multi_label):
    compared = sum(
        agree(oracle, ours, labels, threshold=threshold, nested=nested, multi_label=multi_label)
        for threshold, labels in itertools.product(THRESHOLDS, LABEL_SETS[:3])
    )
    assert compared > 80


def test_the_same_entities_with_labels_of_each_text_and_with_descriptions(oracle, ours):
    each = [LABEL_SETS[i % 3] for i in range(len(TEXTS))]
    described = {"person": "name of somebody", "place": "city, country or region", "person ": "person"}
    for labels in (each, described):
        assert agree(oracle, ours, labels, threshold=0.2) > 12
