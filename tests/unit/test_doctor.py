"""Tests `spanlake doctor`: it names what works, what is missing and what is broken."""

import json

import pytest

from spanlake import cli, doctor

Captured = pytest.CaptureFixture[str]


def run(capsys: Captured) -> tuple[int, dict[str, dict[str, str]]]:
    code = cli.main(["doctor", "--json"])
    return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_the_core_works_on_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, checks = run(capsys)
    assert code == 0
    assert checks["embedded model"]["verdict"] == "ok" and "mini" in checks["embedded model"]["says"]
    assert checks["ray"]["verdict"] == "ok"


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "_LIBRARIES", (("no-such-library", "serve", "`spanlake serve`"),))
    code, checks = run(capsys)
    assert code == 0
    assert checks["no-such-library"]["verdict"] == "missing"
    assert "pip install 'spanlake[serve]'" in checks["no-such-library"]["says"]


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(doctor, "_RAY_SECONDS", 5.0)
    code, checks = run(capsys)
    assert code == 1
    assert checks["Ray cluster"]["verdict"] == "broken" and "127.0.0.1:1" in checks["Ray cluster"]["says"]
