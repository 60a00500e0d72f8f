"""`spanlake annotate` with a real server that answers from a list, wrong answers included."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import ChatServer, chat_server
from commands import activated, free_port

from spanlake import cli

TEXTS = [f"Ada met Bo in London {number}." for number in range(10)]
GOOD = {"say": '[("Ada", "poet", "person"), ("London", "city")]\n["award"]'}
TOKENS = 12  # of an answer of the server


@pytest.fixture(autouse=True)
def no_other_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for a moment whether another one has begun with it; here no other one does."""
    monkeypatch.setattr("spanlake.extraction.output.lease._SETTLE_SECONDS", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"id": range(12), "body": [*TEXTS, None, "  "]}), path)
    return path


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(GOOD) as running:
        yield running


def call(source: Path, server: ChatServer, *options: str) -> list[str]:
    return [
        *("annotate", str(source), str(source.parent / "out"), "--endpoint", server.url, "--model", "m"),
        *("--text-column", "body", "--concurrency", "1", "--unit-rows", "4", *options),
    ]


def annotated(source: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the annotated rows and the dead rows."""
    found = []
    for pattern in ("out/*.parquet", "out/_dead/*.parquet"):
        files = sorted(source.parent.glob(pattern))
        found.append([row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()])
    return found[0], found[1]


def asked_texts(server: ChatServer) -> list[str]:
    return [body["messages"][-1]["content"].rpartition("Passage: ")[2] for body in server.asked]


def test_every_row_is_annotated_or_dead_with_its_reason(source: Path, capfd: Any):
    rules: list[dict[str, Any]] = [
        {"if": TEXTS[1], "say": "Lo siento, no puedo."},
        {"if": TEXTS[2], "say": '[("Londres", "ville")]'},
        {"if": TEXTS[3], "status": 400, "say": "filtered"},
        {"if": TEXTS[5], "body": {"choices": [{"message": {"content": "[]"}, "finish_reason": "length"}]}},
        {"if": TEXTS[6], "say": '[("Ada", "poet"), ("Paris", "city")]'},
        GOOD,
    ]
    with chat_server(*rules) as server:
        assert cli.main(call(source, server, "--json", "--price", "1000000,0")) == 0
        document = json.loads(capfd.readouterr().out)
        assert cli.main(call(source, server)) == 0
        assert len(server.asked) == 10  # the second call asks nothing
    good, dead = annotated(source)
    assert [row["row"] for row in good] == [0, 4, 6, 7, 8, 9]
    assert good[0]["text"] == TEXTS[0] and good[0]["negatives"] == ["award"] and good[0]["source"] == "texts.parquet"
    assert good[0]["mentions"] == [
        {"start": 0, "end": 3, "types": ["poet", "person"]},
        {"start": 14, "end": 20, "types": ["city"]},
    ]
    assert {row["row"]: row["error"] for row in dead} == {
        1: "the answer cannot be read: it holds no list",
        2: "the text has none of the entities of the answer: ['Londres']",
        3: "the endpoint has no answer: status 400: 'filtered'",
        5: "the answer breaks off or is not well-formed",
        10: "text is null",
        11: "text is empty",
    }
    assert dead[0]["answer"] == "Lo siento, no puedo." and dead[0]["text"] == TEXTS[1]
    assert (document["rows"], document["dead"], document["mentions"], document["dropped"]) == (
        12,
        6,
        11,
        {"not_found": 1},
    )
    assert document["types"] == {"poet": 6, "person": 5, "city": 5}
    assert (document["answers"], document["estimated"]) == (9, True)
    out = capfd.readouterr().out
    assert "6 annotated texts of 12, with 11 mentions of 3 types" in out and "6 dead rows in _dead" in out


def test_the_output_is_training_data(source: Path, server: ChatServer, capfd: Any):
    assert cli.main(call(source, server)) == 0
    prepared = source.parent / "prepared"
    assert cli.main(["data", "prepare", str(source.parent / "out"), "--output", str(prepared), "--json"]) == 0
    statistics = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (statistics["examples"], statistics["bad_records"], statistics["mentions_in_levels"]) == (10, 0, 10)


def test_dead_rows_alone_are_asked_again(source: Path, capfd: Any):
    with chat_server({"if": TEXTS[1], "say": "no", "times": 1}, GOOD) as server:
        assert cli.main(call(source, server)) == 0
        assert cli.main(call(source, server, "--retry-dead")) == 0
        assert Counter(asked_texts(server)) == Counter([*TEXTS, TEXTS[1]])
    good, dead = annotated(source)
    assert [row["row"] for row in good] == list(range(10)) and [row["row"] for row in dead] == [10, 11]


def test_a_budget_stops_and_a_larger_one_goes_on(source: Path, server: ChatServer, capfd: Any):
    for budget, answers in ((str(3 * TOKENS), 3), (str(6 * TOKENS - 1), 6)):
        assert cli.main(call(source, server, "--budget", budget)) == 1
        error = capfd.readouterr().err
        assert f"The budget of {budget} is spent ({10 * answers} tokens asked" in error and error.count("\n") == 1
        assert len(server.asked) == answers
    assert cli.main(call(source, server, "--budget", "$1", "--price", "100000,0")) == 1  # six answers cost 6
    assert cli.main(call(source, server, "--budget", "7.5 USD", "--price", "100000,0")) == 1
    assert len(server.asked) == 8
    assert cli.main(call(source, server)) == 0
    assert sorted(asked_texts(server)) == TEXTS
    assert len(annotated(source)[0]) == 10


def test_an_endpoint_that_goes_down_is_one_sentence_and_finished_rows_stay(source: Path, capfd: Any):
    with chat_server({"status": 401, "if": TEXTS[6], "times": 1}, GOOD) as server:
        assert cli.main(call(source, server)) == 2
        error = capfd.readouterr().err
        assert "refuses the key" in error and error.count("\n") == 1
        assert cli.main(call(source, server)) == 0
        assert Counter(asked_texts(server)) == Counter([*TEXTS, TEXTS[6]])
    assert len(annotated(source)[0]) == 10


def test_an_endpoint_that_is_not_there(source: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spanlake.chat.endpoint._ATTEMPTS", 1)
    address = f"http://127.0.0.1:{free_port()}/v1"
    command = ["annotate", str(source), str(source.parent / "out"), "--text-column", "body"]
    assert cli.main([*command, "--endpoint", address, "--model", "m"]) == 1
    error = capfd.readouterr().err
    assert "cannot be reached" in error and "finished rows are kept" in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_every_row_is_there_once(source: Path, how: signal.Signals, capfd: Any):
    with chat_server({**GOOD, "seconds": 0.3}) as server:  # so that the signal comes before the last answer
        process = subprocess.Popen(
            [sys.executable, "-m", "spanlake.cli", *call(source, server)],
            env={**activated(), "PYTHONPATH": "platform"},
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background makes them ignore SIGINT, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while len(server.asked) < 6 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        assert process.returncode == (-9 if how == signal.SIGKILL else 130), error
        before = len(server.asked)
        assert 6 <= before < 10
        assert cli.main(call(source, server)) == 0
        again = Counter(asked_texts(server))
    good, dead = annotated(source)
    assert [row["row"] for row in good] == list(range(10)) and [row["row"] for row in dead] == [10, 11]
    assert not set(TEXTS[:4]) & {text for text, times in again.items() if times > 1}  # the first unit was committed
    assert how == signal.SIGKILL or again.total() <= 11  # only the question in flight is asked again


def test_bad_calls_are_refused(source: Path, server: ChatServer, capfd: Any):
    assert cli.main(call(source, server)) == 0
    capfd.readouterr()
    for options, says in (
        (["--budget", "much"], "'much' is neither tokens, as in 500000, nor money"),
        (["--budget", "2.5"], "'2.5' is neither tokens"),
        (["--budget", "$2"], "give --price IN,OUT"),
        (["--model", " "], "The name of the model is empty"),
        (["--text-column", "x"], "no column called x"),
        (["--model", "other"], "model m in the output, other requested"),
        (["--limit", "3"], "limit none in the output, 3 requested"),
    ):
        assert cli.main(call(source, server, *options)) == 2
        error = capfd.readouterr().err
        assert says in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as exited:  # an option of `extract` that annotate does not have
        cli.main(call(source, server, "--since", "3"))
    assert exited.value.code == 2 and "--since 3" in capfd.readouterr().err


def test_other_content_and_a_changed_source_are_refused(source: Path, server: ChatServer, capfd: Any):
    (source.parent / "out").mkdir()
    (source.parent / "out" / "notes.txt").write_text("")
    assert cli.main(call(source, server)) == 2
    assert "is not empty (it holds notes.txt) and not an output of `spanlake annotate`" in capfd.readouterr().err
    (source.parent / "out" / "notes.txt").unlink()
    assert cli.main(call(source, server)) == 0
    pq.write_table(pa.table({"body": TEXTS[:3]}), source)
    assert cli.main(call(source, server)) == 2
    assert "the source has changed" in capfd.readouterr().err
