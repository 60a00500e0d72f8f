"""Only one driver at a time works on an output."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spanlake.errors import UserError
from spanlake.extraction.output import lease
from spanlake.extraction.output.lease import check_free, held
from spanlake.storage import Place, locate


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    """The part of a ledger that a driver uses."""
    (tmp_path / "_spanlake" / "tmp" / "run").mkdir(parents=True)
    return SimpleNamespace(output=locate(str(tmp_path)), temporary="_spanlake/tmp/run")


def leave(output: Place, **changes: Any) -> None:
    """Writes the file of a dead driver."""
    driver = {"id": "a", "host": lease.socket.gethostname(), "pid": os.getpid(), "beat": 4, **changes}
    Path(output.child("_spanlake/driver.json")).write_text(json.dumps(driver))


def test_a_second_driver_is_refused_while_the_first_lives(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.3)
    with held(ledger), pytest.raises(UserError, match=rf"Another run writes to .* \(process {os.getpid()} on "):
        check_free(ledger.output)
    assert not Path(ledger.output.child("_spanlake/driver.json")).exists()
    check_free(ledger.output)


def test_a_driver_that_died_on_this_machine_is_recognized_at_once(ledger: Any) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(ledger.output, pid=gone.pid)
    began = time.monotonic()
    check_free(ledger.output)
    assert time.monotonic() - began < lease._DEAD_SECONDS / 2


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {}], ids=["another machine", "another process's number"])
def test_a_driver_whose_beat_does_not_change_is_dead(
    changes: dict[str, str], ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_DEAD_SECONDS", 1.5)
    leave(ledger.output, **changes)
    check_free(ledger.output)


def test_one_of_two_drivers_that_begin_together_continues(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.time, "sleep", lambda _: leave(ledger.output, id="another"))
    with pytest.raises(UserError, match="Another run writes to"), held(ledger):
        raise AssertionError("it must not begin")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 1, "host": 2, "pid": "x", "beat": 0}', "null"])
def test_a_file_without_meaning_is_not_a_driver(content: str, ledger: Any) -> None:
    Path(ledger.output.child("_spanlake/driver.json")).write_text(content)
    check_free(ledger.output)
