"""Runs the example of docs/rules.md."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import ROOT

from spanlake import cli

DOCS = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def block(language: str, place: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)[place]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pii.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_finds_by_rule_and_by_model(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = next(line for line in block("sh").splitlines() if line.startswith("spanlake predict"))
    assert cli.main([*shlex.split(command)[1:], "--json"]) == 0
    [entities] = json.loads(capfd.readouterr().out)
    assert [(entity["text"], entity["label"], entity["source"]) for entity in entities] == [
        ("Ada Lovelace", "person", "model"),
        ("ada@example.org", "email", "rule"),
        ("4111 1111 1111 1111", "card", "rule"),
        ("OPS-1843", "ticket", "rule"),
    ]


def test_the_python_example(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exec(block("python"), {})
    assert "('ada@example.org', 'email', 'rule')" in capfd.readouterr().out
