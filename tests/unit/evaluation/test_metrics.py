"""Exact-match scores, and the benchmark sets they are of."""

import json
from pathlib import Path
from typing import Any

import pytest

from spanlake import Extractor, UserError
from spanlake.evaluation.benchmark import evaluate, read_sets
from spanlake.evaluation.metrics import Score, Tally


def test_a_mention_counts_where_start_end_and_label_agree():
    tally = Tally()
    gold = [(0, 5, "person"), (10, 15, "city"), (20, 25, "city")]
    tally.add([(0, 5, "person"), (10, 15, "person"), (20, 26, "city"), (30, 35, "dog")], gold)
    assert tally.overall() == Score(correct=1, predicted=4, gold=3)
    assert tally.by_label() == {"city": Score(0, 1, 2), "dog": Score(0, 1, 0), "person": Score(1, 2, 1)}


def test_texts_add_up_and_are_kept_apart():
    tally = Tally()
    tally.add([(0, 5, "person")], [(0, 5, "person")])
    tally.add([(0, 5, "person")], [(1, 5, "person")])
    tally.add([(1, 5, "person")], [])
    assert tally.overall() == Score(correct=1, predicted=3, gold=2)


def test_a_span_given_twice_counts_once():
    tally = Tally()
    tally.add([(0, 5, "a"), (0, 5, "a")], [(0, 5, "a"), (0, 5, "a"), (0, 5, "b")])
    assert tally.overall() == Score(correct=1, predicted=1, gold=2)


def test_precision_recall_and_f1():
    score = Score(correct=3, predicted=4, gold=12)
    assert (score.precision, score.recall) == (0.75, 0.25)
    assert score.f1 == pytest.approx(2 * 0.75 * 0.25 / (0.75 + 0.25))
    assert (Score(0, 0, 5).precision, Score(0, 5, 0).recall, Score(0, 0, 0).f1) == (0, 0, 0)


# --- benchmark sets ---------------------------------------------------------------------------------------------------

SENTENCES = [{"sentence": "Ada met Bo.", "entities": [{"name": "Ada", "type": "Person", "pos": [0, 3]}]}]


def make_set(home: Path, labels: Any = ("Person",), sentences: Any = SENTENCES, split: str = "test") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "labels.json").write_text(json.dumps(labels))
    (home / f"{split}.json").write_text(json.dumps(sentences))
    return home


def test_a_set_or_a_directory_of_sets_is_read(tmp_path: Path):
    make_set(tmp_path / "two", labels=["b", "a"])
    make_set(tmp_path / "one")
    (tmp_path / "notes").mkdir()
    both = read_sets(tmp_path, "test")
    assert [benchmark.name for benchmark in both] == ["one", "two"]
    assert both[1].labels == ("b", "a")
    [mention] = both[0].examples[0].mentions
    assert (both[0].examples[0].text[mention.start : mention.end], mention.label) == ("Ada", "Person")
    assert read_sets(tmp_path / "one", "test") == both[:1]


@pytest.mark.parametrize("path", [".", "nothing"])
def test_a_directory_without_sets_is_named(tmp_path: Path, path: str):
    with pytest.raises(UserError, match="holds no benchmark set"):
        read_sets(tmp_path / path, "test")


@pytest.mark.parametrize("content", ["{", "{}", '"person"', "[1]", "[]", '["a", null]', "\udcff"])
def test_labels_of_another_form_are_refused(tmp_path: Path, content: str):
    make_set(tmp_path)
    (tmp_path / "labels.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"labels\.json is no"):
        read_sets(tmp_path, "test")


@pytest.mark.parametrize("content", ["", "{", "{}", "null", "5", '"text"', "\udcff"])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: str):
    make_set(tmp_path)
    (tmp_path / "test.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"test\.json cannot be read as a JSON list of sentences"):
        read_sets(tmp_path, "test")


def test_a_missing_split_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"dev\.json cannot be read"):
        read_sets(make_set(tmp_path), "dev")


GOOD = SENTENCES[0]


@pytest.mark.parametrize(
    "record",
    [
        None,
        "Ada met Bo.",
        [],
        {},
        {"sentence": "Ada"},
        {"sentence": None, "entities": []},
        {"sentence": 5, "entities": []},
        {**GOOD, "entities": None},
        {**GOOD, "entities": ["Ada"]},
        {**GOOD, "entities": [{"type": "Person"}]},
        {**GOOD, "entities": [{"pos": [0, 3]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": [0]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": [0, 3, 5]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": ["0", "3"]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": [3, 3]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": [-1, 3]}]},
        {**GOOD, "entities": [{"type": "Person", "pos": [0, 12]}]},
    ],
)
def test_a_record_of_another_form_is_named_by_its_number(tmp_path: Path, record: Any):
    make_set(tmp_path, sentences=[GOOD, record])
    with pytest.raises(UserError, match=r"Record 1 of .*test\.json is no sentence") as caught:
        read_sets(tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_what_the_model_finds_is_compared_with_what_is_there(tiny_model_dir: Path, tmp_path: Path):
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    texts = ["Ada Lovelace met Charles Babbage in London.", "The union of nations fell in June.", "Where, Geneva?"]
    labels = ["Person", "Place"]
    found = extractor.extract(texts, ["person", "place"], threshold=0.4)
    assert sum(map(len, found)) > 4
    gold = [[(e.start, e.end, e.label.title()) for e in entities] for entities in found]
    gold[0].pop()  # one that should not have been found
    gold[1].append((0, 3, "Dog"))  # and one that nobody asked for
    sentences = [
        {"sentence": text, "entities": [{"type": label, "pos": [start, end]} for start, end, label in mentions]}
        for text, mentions in zip(texts, gold, strict=True)
    ]
    make_set(tmp_path / "set", labels, sentences)
    [result] = evaluate(extractor, read_sets(tmp_path, "test"), threshold=0.4)
    predicted = sum(map(len, found))
    assert result.overall == Score(correct=predicted - 1, predicted=predicted, gold=predicted)
    assert result.by_label["dog"] == Score(0, 0, 1)
    assert result.to_dict()["texts"] == 3
    assert result.to_dict()["f1"] == round(100 * (predicted - 1) / predicted, 2)
