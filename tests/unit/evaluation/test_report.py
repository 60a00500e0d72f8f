"""What models got wrong, their curves, two models compared, and the documents made of it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanlake import UserError, cli
from spanlake.data.examples import Example, Mention
from spanlake.decoding import Entity
from spanlake.evaluation.compare import compare
from spanlake.evaluation.curves import curve
from spanlake.evaluation.mistakes import mistakes
from spanlake.evaluation.published import PublishedRow, published_rows
from spanlake.evaluation.report import Report
from spanlake.evaluation.results import Evaluation
from spanlake.evaluation.scores import ModelFacts, Outcome
from spanlake.evaluation.sets import BenchmarkSet
from spanlake.evaluation.suites import SUITES

TEXT = "Ada Lovelace met Charles Babbage in London <b>."


def entity(start: int, end: int, label: str, score: float = 0.9) -> Entity:
    return Entity(start, end, TEXT[start:end], label, score)


def outcome(found: list[list[Entity]], gold: list[list[tuple[int, int, str]]], name: str = "AI") -> Outcome:
    examples = tuple(Example(TEXT, tuple(Mention(*mention) for mention in own)) for own in gold)
    return Outcome(BenchmarkSet(name, ("person", "place"), examples), found)


@pytest.mark.parametrize(
    ("found", "gold", "kinds"),
    [
        ([(0, 12, "person")], [(0, 12, "person")], []),
        ([(0, 12, "place")], [(0, 12, "person")], ["wrong type"]),
        ([(0, 3, "person")], [(0, 12, "person")], ["wrong boundary"]),
        ([(0, 3, "place")], [(0, 12, "person")], ["spurious", "missed"]),
        ([(0, 3, "person")], [(17, 32, "person")], ["spurious", "missed"]),
        ([(0, 3, "person")], [(3, 12, "person")], ["spurious", "missed"]),  # they touch
        ([(0, 12, "place"), (0, 3, "person")], [(0, 12, "person")], ["spurious", "wrong type"]),
        ([(0, 3, "person"), (4, 12, "person")], [(0, 12, "person")], ["wrong boundary", "spurious"]),
        ([(4, 32, "person")], [(0, 12, "person"), (17, 32, "person")], ["missed", "wrong boundary"]),
        ([(0, 12, "person")], [(0, 12, "person"), (0, 12, "place")], ["missed"]),
    ],
)
def test_kinds_of_mistakes(found: list[Any], gold: list[Any], kinds: list[str]):
    assert [mistake.kind for mistake in mistakes([entity(*each) for each in found], gold)] == kinds


def test_every_mention_and_entity_is_right_or_in_one_mistake():
    rng = np.random.default_rng(1)
    for _ in range(200):
        spans = [(int(a), int(a + b), "ab"[c]) for a, b, c in rng.integers((0, 1, 0), (9, 5, 2), size=(8, 3))]
        gold, found = {*spans[:4]}, [entity(*span) for span in {*spans[4:]}]
        wrong = mistakes(found, gold)
        right = {(each.start, each.end, each.label) for each in found} & gold
        assert sorted(each.gold for each in wrong if each.gold) == sorted(gold - right)
        assert len([each for each in wrong if each.found]) == len(found) - len(right)


def test_a_curve_has_the_score_of_every_threshold():
    found = [[entity(0, 12, "person", 0.9), entity(36, 42, "person", 0.6)], [entity(0, 12, "person", 0.6)]]
    gold = [[(0, 12, "person"), (36, 42, "place")], [(0, 12, "person"), (17, 32, "person")]]
    made = outcome(found, gold)
    line = curve(made)
    assert line.points() == [(0.9, 1.0, 0.25), (0.6, 2 / 3, 0.5)]  # what scores the same comes together
    for threshold, precision, recall in line.points():
        score = made.result(threshold - 0.01).overall
        assert (score.precision, score.recall) == (precision, recall)
    assert line.best == (0.6, pytest.approx(made.result(0.5).overall.f1))
    empty = curve(outcome([[]], [[(0, 12, "person")]]))
    assert (empty.points(), empty.best) == ([], (0.0, 0.0))


def test_a_long_curve_is_thinned():
    rng = np.random.default_rng(0)
    found = [[entity(0, i + 1, "person", float(score))] for i, score in enumerate(rng.random(900))]
    points = curve(outcome(found, [[(0, 5, "person")]] * 900)).points()
    assert len(points) == 200 and points[-1][0] == min(each[0].score for each in found)


def models(texts: int, one_right: float, other_right: float) -> tuple[Outcome, Outcome]:
    """Two models that find the one mention of a text with these probabilities, and nothing else."""
    rng = np.random.default_rng(3)
    right = [entity(0, 12, "person")]
    found = [[right if draw < share else [] for draw in rng.random(texts)] for share in (one_right, other_right)]
    return tuple(outcome(each, [[(0, 12, "person")]] * texts) for each in found)  # type: ignore[return-value]


def test_an_interval_holds_the_difference_and_narrows_with_the_texts():
    [few] = compare(*[[each] for each in models(60, 0.7, 0.5)], (0.5, 0.5))
    [many] = compare(*[[each] for each in models(6000, 0.7, 0.5)], (0.5, 0.5))
    true = 2 * 0.7 / 1.7 - 2 * 0.5 / 1.5
    for each in (few, many):
        assert each.low < each.difference < each.high and each.low < true < each.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert many.low > 0


def test_a_model_against_itself_and_the_mean_of_sets():
    one, other = models(50, 0.7, 0.2)
    same, mean = compare([one, one], [one, one], (0.5, None))[1:]
    assert (same.low, same.difference, same.high, mean.name) == (0, 0, 0, "mean")
    first, second, mean = compare([one, one], [other, one], (0.5, 0.5))
    assert mean.difference == pytest.approx((first.difference + second.difference) / 2)
    assert mean.f1 == pytest.approx(one.result(0.5).overall.f1)


@pytest.fixture
def report() -> Report:
    found = [[entity(0, 12, "person"), entity(17, 24, "person"), entity(43, 46, "place", 0.7)]] * 70
    gold = [[(0, 12, "person"), (17, 32, "person"), (36, 42, "place")]] * 70
    good, empty = [outcome(found, gold)], [outcome([[]] * 70, gold)]
    one, other = ModelFacts("one", "f" * 64, 12), ModelFacts("other | <i>", "e" * 64, 12, calibrated=True)
    first = Evaluation(one, good, good, [0.5, 0.8], "dev", SUITES["ood"])
    second = Evaluation(other, empty, empty, [None], "dev", SUITES["ood"])
    return Report(first, second, [PublishedRow("paper", "ood", "Table 1", {"AI": 50.7})])


def test_the_json_document(report: Report):
    document = json.loads(json.dumps(report.to_dict()))
    assert document["mistakes"] == [{"name": "AI", "missed": 70, "spurious": 70, "wrong type": 0, "wrong boundary": 70}]
    assert document["curves"][0]["points"] == [[0.9, 0.5, 0.3333], [0.7, 0.3333, 0.3333]]
    assert document["against"]["sets"][0]["f1"] == 0 and document["comparison"][0]["interval"] == [33.33, 33.33]
    assert document["published"] == [{"model": "paper", "suite": "ood", "source": "Table 1", "f1": {"AI": 50.7}}]


def test_the_markdown_document(report: Report):
    text = report.to_markdown()
    assert "| AI | 70 | 210 | 33.3 | 33.3 | 33.3 |" in text
    assert "| one | – | – | 33.3 | – | – | – | – | 33.3 (of 1) | measured, dev files |" in text
    assert "| paper | – | – | 50.7 | – | – | – | – | – | Table 1 |" in text
    assert "| AI | 33.3 | 0.0 | +33.3 | +33.3 to +33.3 |" in text and "other \\| <i>" in text


def test_the_html_document_stands_alone_and_escapes_what_it_shows(report: Report):
    page = report.to_html()
    assert not re.search(r'(src|href)="', page) and "<i>" not in page and "London <b>" not in page
    assert page.count('data-kind="wrong boundary"') == 50
    assert '<mark class="gold found">Charles</mark><mark class="gold"> Babbage</mark>' in page
    assert 'met Charles Babbage in London <mark class="found">&lt;b&gt;</mark>.' in page
    assert "there: person, found: person 0.90" in page
    assert "Published figures are of test files" in page and ">50.7<" in page


def test_published_rows_have_a_source_and_known_columns(tmp_path: Path):
    for suite in SUITES.values():
        for row in published_rows(suite.name):
            assert row.source and {*row.f1} <= {*(member.name for member in suite.members), *suite.averages}
    own = {"model": "mine", "suite": "ood", "source": "a note", "f1": {"AI": 1}}
    (tmp_path / "own.json").write_text(json.dumps([own, {**own, "suite": "20ner"}]))
    assert published_rows("ood", tmp_path / "own.json")[-1] == PublishedRow("mine", "ood", "a note", {"AI": 1.0})
    for content in ("{", "[1]", '[{"model": "x"}]', json.dumps([{**own, "f1": 3}])):
        (tmp_path / "own.json").write_text(content)
        with pytest.raises(UserError, match="not a list of published rows"):
            published_rows("ood", tmp_path / "own.json")


def test_the_command_writes_reports(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = {"text": TEXT, "mentions": [{"start": 0, "end": 12, "label": "person"}]}
    (tmp_path / "a_test.jsonl").write_text(json.dumps(record))
    call = ["evaluate", "--data", str(tmp_path), "--model", str(tiny_model_dir), "--device", "cpu"]
    paths = [tmp_path / f"report{suffix}" for suffix in (".html", ".json", ".md")]
    options = [option for path in paths for option in ("--report", str(path))]
    assert cli.main([*call, "--against", "mini", *options]) == 0
    assert re.search(r"^a: F1 [\d.]+ against [\d.]+, [+-][\d.]+ \(95 % interval", capsys.readouterr().out, re.MULTILINE)
    assert json.loads(paths[1].read_text())["against"]["model"]["name"] == "mini"
    assert "tiny against mini" in paths[0].read_text() and paths[2].read_text().startswith("# tiny\n")
    for path in (tmp_path / "report.pdf", tmp_path / "none" / "report.html"):
        assert cli.main([*call, "--report", str(path)]) == 2
        assert "must end in .html, .json, .md" in capsys.readouterr().err
