"""Language models as baselines, asked over HTTP: a real server answers from a list, wrong answers included."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server
from commands import free_port

from spanlake import cli
from spanlake.chat.endpoint import Endpoint, Price
from spanlake.evaluation.baseline import ask_sets
from spanlake.evaluation.sets import read_set

TEXTS = [
    ("Ada met Bo in London.", [("Ada", "Person"), ("Bo", "Person"), ("London", "Place")]),
    ("The University of Warsaw.", [("University of Warsaw", "Organization"), ("Warsaw", "Place")]),
    ("Nobody is here.", []),
    ("Marie saw Pierre.", [("Marie", "Person"), ("Pierre", "Person")]),
    ("Curie stayed.", [("Curie", "Person")]),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    records = [
        {
            "sentence": text,
            "entities": [
                {"name": name, "type": label, "pos": [text.index(name), text.index(name) + len(name)]}
                for name, label in mentions
            ],
        }
        for text, mentions in TEXTS
    ]
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "labels.json").write_text('["Person", "Place", "Organization"]')
    (tmp_path / "small" / "test.json").write_text(json.dumps(records))
    return tmp_path


TUPLES = [
    {"if": TEXTS[0][0], "say": '[("Ada", "Person"), ("BO", "person"), ("London", "city"), ("Lundi", "place")]'},
    {"if": TEXTS[1][0], "say": '```[("University of Warsaw", "organization"), ("Warsaw", "place")]```'},
    {"if": TEXTS[2][0], "say": "Désolé, je ne trouve rien."},
    {"if": TEXTS[3][0], "say": '[("Marie", "person"), ("Pier'},
    {"if": TEXTS[4][0], "status": 400, "say": "filtered"},
]


def evaluate(server: ChatServer, home: Path, capfd: Any, *options: str) -> dict[str, Any]:
    call = ["evaluate", "--endpoint", server.url, "--model", "m", "--data", str(home), "--json", *options]
    assert cli.main(call) == 0
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return document


def test_tuples_are_scored_and_wrong_answers_are_counted_and_named(home: Path, capfd: Any):
    with chat_server(*TUPLES) as server:
        document = evaluate(server, home, capfd, "--price", "1000000,0")
    assert document["model"] == {"name": "m", "asked": f"asked at {server.url}, style tuples"}
    [scores] = document["sets"]
    assert (scores["gold"], scores["predicted"], scores["precision"]) == (8, 4, 100)  # Ada, Bo, University …, Marie
    answers = document["answers"]
    assert (answers["questions"], answers["answers"], answers["prompt_tokens"], answers["cost"]) == (5, 4, 40, 40)
    assert answers["problems"] == {
        "not_found": 1,
        "not_whole": 1,
        "other_type": 1,
        "overlapping": 1,
        "unanswered": 1,
        "unreadable": 1,
    }
    assert "small, text 2: unreadable: 'Désolé, je ne trouve rien.'" in answers["first_problems"]
    assert "small, text 4: unanswered: status 400: 'filtered'" in answers["first_problems"]
    assert "small, text 0: other_type: ('London', 'city')" in answers["first_problems"]
    assert all("person, place, organization" in body["messages"][-1]["content"] for body in server.asked)


def test_a_conversation_asks_for_each_type(home: Path, capfd: Any):
    rules = [
        {"if": f"Text: {text}\nI've read this text.\nWhat describes {label} in", "say": json.dumps(names)}
        for text, mentions in TEXTS
        for label in ("person", "place", "organization")
        for names in [[name for name, of in mentions if of.lower() == label]]
    ]
    with chat_server(*rules) as server:
        document = evaluate(server, home, capfd, "--style", "conversation", "--nested")
    [scores] = document["sets"]
    assert scores["f1"] == 100 and scores["gold"] == 8
    assert document["answers"]["questions"] == len(server.asked) == 15
    assert document["answers"]["problems"] == {}


def test_every_place_of_a_string_is_a_mention_with_score_1(tmp_path: Path):
    (tmp_path / "s_test.jsonl").write_text(json.dumps({"text": "Ada, Ada", "mentions": [[0, 3, "a"]], "absent": ["b"]}))
    benchmark = read_set("s", str(tmp_path / "s_test.jsonl"), "test")
    with chat_server({"say": '[("Ada", "a", "b")]'}) as server:
        _, [outcome], answers = ask_sets(Endpoint(server.url, "m"), "tuples", Price(0, 0), [benchmark])
    assert [(e.start, e.end, e.text, e.label, e.score) for e in outcome.found[0]] == [
        (start, start + 3, "Ada", label, 1.0) for start in (0, 5) for label in "ab"
    ]
    assert not answers.problems


def test_a_name_in_a_script_without_spaces_is_found(tmp_path: Path):
    text = "นายสมชายทำงานที่กรุงเทพมหานคร"
    start = text.index("สมชาย")
    row = {"text": text, "mentions": [[start, start + 5, "person"]]}
    (tmp_path / "s_test.jsonl").write_text(json.dumps(row))
    benchmark = read_set("s", str(tmp_path / "s_test.jsonl"), "test")
    with chat_server({"say": '[("สมชาย", "person")]'}) as server:
        _, [outcome], answers = ask_sets(Endpoint(server.url, "m"), "tuples", Price(0, 0), [benchmark])
    assert [(each.start, each.end, each.label) for each in outcome.found[0]] == [(start, start + 5, "person")]
    assert not answers.problems


def test_the_report_says_how_the_model_was_asked(home: Path, tiny_model_dir: Path, capfd: Any):
    paths = [home / f"report.{kind}" for kind in ("html", "md", "json")]
    options = [part for path in paths for part in ("--report", str(path))]
    with chat_server(*TUPLES) as server:
        call = ["evaluate", "--endpoint", server.url, "--model", "m", "--data", str(home), "--against"]
        assert cli.main([*call, str(tiny_model_dir), *options]) == 0
    out = capfd.readouterr().out
    assert (
        "m (asked at http://127.0.0.1:" in out
        and "small, text 2: unreadable" in out
        and "small: F1 66.7 against" in out
    )
    for path in paths:
        report = path.read_text()
        assert "style tuples" in report and "unanswered" in report
    assert "small, text 2: unreadable" in paths[0].read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--style", "tuples"], "--style is for language models; give --endpoint URL too."),
        (["--concurrency", "2"], "--concurrency is for language models"),
        (["--endpoint", "http://h/v1"], "--endpoint needs --model"),
        (["--endpoint", "http://h/v1", "--model", "m", "--price", "1"], "The price '1' is not two numbers"),
        (["--endpoint", "http://h/v1", "--model", "m", "--workers", "2"], "--workers is for packages"),
        (["--endpoint", "http://h/v1", "--model", "m", "--threshold", "0.3"], "a language model gives no scores"),
    ],
)
def test_options_without_effect_are_refused(options: list[str], says: str, home: Path, capfd: Any):
    assert cli.main(["evaluate", "--data", str(home), *options]) == 2
    assert says in capfd.readouterr().err


def test_an_endpoint_that_answers_nothing_is_one_sentence(home: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch):
    call = ["evaluate", "--data", str(home), "--model", "m", "--endpoint"]
    with chat_server({"status": 400, "say": "maintenance"}) as server:
        assert cli.main([*call, server.url]) == 1
    error = capfd.readouterr().err
    # Questions are asked at the same time, so any may come back first.
    said = r"answered none of 5 questions \(the first: small, text \d: unanswered: status 400: 'maintenance'\)"
    assert re.search(said, error)
    assert error.count("\n") == 1
    monkeypatch.setattr("spanlake.chat.endpoint._ATTEMPTS", 1)
    assert cli.main([*call, f"http://127.0.0.1:{free_port()}/v1"]) == 1
    error = capfd.readouterr().err
    assert "cannot be reached" in error and error.count("\n") == 1
