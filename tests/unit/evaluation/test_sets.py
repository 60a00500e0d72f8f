"""Benchmark sets in all the forms they come in."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanlake import UserError
from spanlake.data.examples import Example, Mention
from spanlake.evaluation.sets import BenchmarkSet, read_set, read_sets

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
    with pytest.raises(UserError, match=r"Record 1 of .*test\.json is not a sentence") as caught:
        read_sets(tmp_path, "test")
    assert "\n" not in str(caught.value)


WORDS = {"tokens": ["Ada", "met", "Bo", "."], "ner_tags": ["B-PER", "O", "B-PER", "O"]}
CONLL = "# id 1\tdomain=en\nAda _ _ B-PER\nmet _ _ O\nBo _ _ B-PER\n. _ _ O\n\n"


def found(path: Path | str, split: Any = "test", **renamed: str) -> list[tuple[str, tuple[str, ...], list[set[Any]]]]:
    return [(each.name, each.labels, [set(gold) for gold in each.gold]) for each in read_sets(path, split, renamed)]


def test_files_are_sets_by_the_split_in_their_names(tmp_path: Path):
    gold = [{(0, 3, "per"), (8, 10, "per")}]
    (tmp_path / "en").mkdir()
    for name in ("de_test.conll", "en/test.conll", "fr-test.bio", "de_dev.conll", "train.conll", "latest.conll"):
        (tmp_path / name).write_text(CONLL)
    (tmp_path / "it.test.jsonl").write_text(json.dumps(WORDS))
    pq.write_table(pa.Table.from_pylist([WORDS]), tmp_path / "nl_test-00000-of-00001.parquet")
    assert found(tmp_path) == [(name, ("PER",), gold) for name in ("de", "en", "fr", "it", "nl")]
    assert [name for name, *_ in found(tmp_path, "dev")] == ["de"]
    assert found(tmp_path / "train.conll", PER="person") == [
        ("train.conll", ("person",), [{(0, 3, "person"), (8, 10, "person")}])
    ]


def test_a_data_set_that_the_library_saved_is_a_set(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([WORDS])
    datasets.DatasetDict(test=rows, validation=rows).save_to_disk(tmp_path / "saved")
    for path, split in ((tmp_path, "test"), (tmp_path / "saved", "dev")):
        assert found(path, split) == [("saved", ("PER",), [{(0, 3, "per"), (8, 10, "per")}])]


def test_sets_of_one_name_are_told_apart_by_their_paths(tmp_path: Path):
    make_set(tmp_path / "one" / "AI")
    make_set(tmp_path / "two" / "AI", labels=["Person", "Dog"])
    assert [(each.name, each.labels) for each in read_sets(tmp_path, "test")] == [
        ("AI", ("Person",)),
        ("two/AI", ("Person", "Dog")),
    ]


def test_texts_that_state_absent_types_are_asked_for_their_own_types(tmp_path: Path):
    """Of a mention's types, for the most specific one."""
    records = [
        {"text": "Ada met Bo.", "mentions": [[0, 3, ["Writer", "person"]]], "absent": ["film", "Dog"]},
        {"text": "Nothing.", "mentions": [], "absent": []},
    ]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, records)))
    [benchmark] = read_sets(tmp_path, "dev")
    assert [benchmark.asked(example) for example in benchmark.examples] == [["writer", "film", "dog"], []]
    assert benchmark.gold == ({(0, 3, "writer")}, set())


def test_mentions_that_no_span_stands_for_are_counted(tmp_path: Path):
    mentions = [{"type": "x", "pos": pos} for pos in ([0, 11], [0, 3], [1, 3])]
    make_set(tmp_path, sentences=[{"sentence": "Ada met Bo.", "entities": mentions}])
    [benchmark] = read_sets(tmp_path, "test")
    assert benchmark.unfindable(3) == {"inside_a_word": 1, "wider_than_max_width": 1}
    assert benchmark.unfindable(4) == {"inside_a_word": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tokens": ["Ada"], "ner_tags": ["O"]}, "has no mention in its 1 texts"),
        ({"text": "Ada"}, r"a_test.jsonl, line 1 cannot be scored: its keys \['text'\]"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, content: dict[str, Any], message: str):
    (tmp_path / "a_test.jsonl").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_sets(tmp_path, "test")
    with pytest.raises(UserError, match=message):
        read_set("a", str(tmp_path / "a_test.jsonl"), "test")


def test_what_cannot_be_found_depends_on_the_splitter(tmp_path: Path) -> None:
    text = "田中さんはパリに行きました。"
    start = text.index("パリ")
    example = Example(text, (Mention(start, start + 2, "location"),))
    benchmark = BenchmarkSet("japanese", ("location",), (example,))
    assert benchmark.unfindable(12) == {"inside_a_word": 1} and benchmark.unfindable(12, "unicode") == {}
