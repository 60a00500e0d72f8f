"""What a model finds in sets, and the suites, averages and sweeps made of it."""

import json
from pathlib import Path

import pytest

from spanlake import Extractor, UserError, cli
from spanlake.decoding import Entity
from spanlake.evaluation.command import parse_thresholds
from spanlake.evaluation.metrics import Score
from spanlake.evaluation.results import Evaluation
from spanlake.evaluation.scores import ModelFacts, Outcome, evaluate
from spanlake.evaluation.sets import read_sets
from spanlake.evaluation.suites import SUITES, read_suite

TEXTS = ["Ada Lovelace met Charles Babbage in London.", "The union of nations fell in June.", "Where, Geneva?"]
LABELS = ["Person", "Place"]


def write_set(home: Path, mentions: list[list[tuple[int, int, str]]], split: str = "test") -> None:
    sentences = [
        {"sentence": text, "entities": [{"type": label, "pos": [start, end]} for start, end, label in own]}
        for text, own in zip(TEXTS, mentions, strict=True)
    ]
    home.mkdir(parents=True)
    (home / "labels.json").write_text(json.dumps(LABELS))
    (home / f"{split}.json").write_text(json.dumps(sentences))


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def test_what_the_model_finds_is_compared_with_what_is_there(extractor: Extractor, tmp_path: Path):
    found = extractor.extract(TEXTS, ["person", "place"], threshold=0.4)
    assert sum(map(len, found)) > 4
    gold = [[(e.start, e.end, e.label.title()) for e in entities] for entities in found]
    gold[0].pop()  # one that should not have been found
    gold[1].append((0, 3, "Dog"))  # and one that nobody asked for
    write_set(tmp_path / "set", gold)
    [outcome] = evaluate(extractor, read_sets(tmp_path, "test"), threshold=0.4)
    result = outcome.result(0.4)
    predicted = sum(map(len, found))
    assert result.overall == Score(correct=predicted - 1, predicted=predicted, gold=predicted)
    assert result.by_label["dog"] == Score(0, 0, 1)
    assert result.to_dict()["texts"] == 3
    assert result.to_dict()["f1"] == round(100 * (predicted - 1) / predicted, 2)


@pytest.mark.parametrize("nested", [False, True])
def test_one_pass_answers_for_all_higher_thresholds(extractor: Extractor, tmp_path: Path, nested: bool):
    write_set(tmp_path / "set", [[(0, 12, "Person")], [], []])
    [outcome] = evaluate(extractor, read_sets(tmp_path, "test"), threshold=0.2, nested=nested)
    for threshold in (0.2, 0.35, 0.5, 0.7):
        again = extractor.extract(TEXTS, ["person", "place"], threshold=threshold, nested=nested)
        for one, other in zip(outcome.above(threshold), again, strict=True):
            assert [(e.start, e.end, e.label) for e in one] == [(e.start, e.end, e.label) for e in other]
            assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-5)


def test_texts_that_ask_for_nothing_have_no_entities(extractor: Extractor, tmp_path: Path):
    texts = [{"text": text, "mentions": [], "absent": ["person"] * (i % 2)} for i, text in enumerate(TEXTS)]
    texts[2]["mentions"] = [[7, 13, ["place"]]]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, texts)))
    [outcome] = evaluate(extractor, read_sets(tmp_path, "dev"), threshold=0.1)
    assert [{entity.label for entity in entities} for entities in outcome.found] == [set(), {"person"}, {"place"}]


@pytest.mark.parametrize(
    ("text", "values"),
    [("0.5", [0.5]), ("0.3,0.7", [0.3, 0.7]), ("0.1:0.5:0.2", [0.1, 0.3, 0.5]), ("0.2:0.2:0.1", [0.2])],
)
def test_thresholds(text: str, values: list[float]):
    assert parse_thresholds(text) == values


@pytest.mark.parametrize(
    "text", ["", "x", "nan", "-0.1", "0.5,1.5", "0.9:0.1:0.1", "0:1:0", "0:1:1e-9", "0:1", "0:1:nan"]
)
def test_what_is_no_threshold_is_refused(text: str):
    with pytest.raises(UserError, match="give a number from 0 to 1"):
        parse_thresholds(text)


# --- suites -----------------------------------------------------------------------------------------------------------


def test_a_suite_names_what_is_not_there(tmp_path: Path):
    mentions = [[(0, 12, "Person")], [], []]
    write_set(tmp_path / "ood" / "CrossNER_AI", mentions)
    write_set(tmp_path / "mit-movie", mentions, split="dev")
    sets, missing = read_suite(SUITES["ood"], tmp_path, "test", {})
    assert [each.name for each in sets] == ["AI"]
    reasons = {each.name: each.reason for each in missing}
    assert list(reasons) == ["Movie", "Restaurant", "Literature", "Music", "Politics", "Science"]
    assert reasons["Movie"] == "here is only its --split dev"
    assert reasons["Music"] == "get it from https://github.com/zliucr/CrossNER"
    with pytest.raises(UserError, match="none of the sets of 20ner with the split test .*ACE05: get it from"):
        read_suite(SUITES["20ner"], tmp_path / "ood", "test", {})


def test_sets_of_the_tables_say_whether_they_are_nested(tmp_path: Path):
    record = json.dumps({"tokens": ["Ada"], "ner_tags": ["B-PER"]})
    for name in ("genia_nested_test", "bc5cdr_test", "ncbi-disease_test"):
        (tmp_path / f"{name}.jsonl").write_text(record)
    (tmp_path / "DE-German").mkdir()
    (tmp_path / "DE-German" / "de_dev.conll").write_text("Ada _ _ B-PER\n")
    sets, _ = read_suite(SUITES["20ner"], tmp_path, "test", {})
    assert [(each.name, each.nested) for each in sets] == [("bc5cdr", False), ("GENIA", True), ("ncbi", False)]
    [german], _ = read_suite(SUITES["multiconer"], tmp_path, "dev", {"person": "human"})
    assert (german.name, german.labels) == ("German", ("person",))


def test_averages_are_over_the_sets_that_are_there(tmp_path: Path):
    mentions = [[(0, 12, "Person")], [], []]
    for name in ("multiconer2022_de", "multiconer2022_zh", "multiconer2022_bn"):
        write_set(tmp_path / name, mentions)
    sets, missing = read_suite(SUITES["multiconer"], tmp_path, "test", {})
    right, wrong = Entity(0, 12, "Ada Lovelace", "person", 0.9), Entity(0, 3, "Ada", "person", 0.6)
    found = {"German": [right], "Bengali": [right, wrong], "Chinese": [wrong]}
    outcomes = [Outcome(each, [found[each.name], [], []]) for each in sets]
    facts, suite = ModelFacts("m", "f", 12), SUITES["multiconer"]
    evaluation = Evaluation(facts, outcomes, outcomes, [0.5, 0.7], "test", suite, missing)
    document = evaluation.to_dict()
    assert [(each["name"], each["f1"]) for each in document["sets"]] == [
        ("German", 100.0),
        ("Bengali", 66.67),
        ("Chinese", 0.0),
    ]
    assert document["averages"] == [
        {"name": "Latin average", "f1": 100.0, "sets": 1, "of": 4},
        {"name": "Non-Latin average", "f1": 33.33, "sets": 2, "of": 7},
        {"name": "Average", "f1": 55.56, "sets": 3, "of": 11},
    ]
    assert [(each["threshold"], each["mean_f1"]) for each in document["sweep"]] == [(0.5, 55.56), (0.7, 66.67)]


def test_the_command_prints_averages_missing_sets_and_a_sweep(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_set(tmp_path / "CrossNER_AI", [[(0, 12, "Person")], [], []])
    write_set(tmp_path / "mit-movie", [[(0, 43, "Person")], [], []])
    call = ["evaluate", "--suite", "ood", "--data", str(tmp_path), "--model", str(tiny_model_dir), "--device", "cpu"]
    assert cli.main([*call, "--threshold", "0.4:0.6:0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Movie: F1 0.0") and lines[0].endswith(
        "(3 texts, 1 mentions, 1 of them wider than 4 words)"
    )
    assert lines[2].startswith("Average: F1 ") and lines[2].endswith("(of 2 of 7 sets)")
    assert lines[3].startswith("Restaurant is not there: get it from http")
    assert lines[8] == "threshold\tmean F1\tMovie\tAI"
    assert [line.split("\t")[0] for line in lines[9:]] == ["0.4", "0.5", "0.6"]
