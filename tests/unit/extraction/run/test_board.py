"""The shared record of the workers in a run, and the progress that people see."""

import re

import pytest

from spanlake.extraction.run import progress as progress_module
from spanlake.extraction.run.board import Board, State
from spanlake.extraction.run.progress import RunProgress
from spanlake.extraction.run.unit import UnitCounts


def test_a_row_over_which_two_workers_died_is_not_read_again() -> None:
    board = Board(limit=5)
    assert not board.tried("u")
    assert board.begin("u", "a") == (1, set())  # a dies
    assert board.tried("u") and not board.tried("v")
    assert board.begin("u", "b") == (2, set())
    board.at_row("u", 0)
    board.at_row("u", 7)  # and b dies
    assert board.begin("u", "c") == (3, set())
    board.at_row("u", 7)
    assert board.begin("u", "d") == (4, {7})
    board.end("u")
    assert not board.tried("u")
    assert board.begin("u", "d") == (1, set())


def test_attempts_have_a_limit() -> None:
    board = Board(limit=2)
    assert [board.begin("u", name) is None for name in "abcd"] == [False, False, True, True]


def test_who_is_at_work_and_at_what() -> None:
    board = Board(limit=5)
    board.join("a")
    board.join("b")
    board.begin("u", "a")
    board.at_stage("u", "reading")
    board.begin("v", "b")
    board.at_stage("v", "scoring")
    assert board.state() == State(2, {"reading": 1, "scoring": 1, "writing": 0})
    board.begin("u", "b")  # so a is dead
    assert board.state() == State(1, {"reading": 0, "scoring": 1, "writing": 0})
    board.join("c")
    board.at_stage("u", "reading")
    board.end("v")
    assert board.state() == State(2, {"reading": 1, "scoring": 0, "writing": 0})


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_module, "_SECONDS_BETWEEN_LINES", 0.0)
    with RunProgress(units=4, total=1000, standing=600) as progress:
        counts = UnitCounts(rows=100, failed_rows=2, tokens=5000)
        counts.by_label["person"] = 30
        progress.add(counts, State(2, {"reading": 0, "scoring": 1, "writing": 1}))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"700 of 1,000 rows, [\d,]+ rows/s, [\d,]+ tokens/s, 30 entities, 2 errors, 0:00:00 left; "
        r"units: 1 waiting, 0 reading, 1 scoring, 1 writing; workers: 2",
        line,
    )
