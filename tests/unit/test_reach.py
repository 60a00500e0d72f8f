"""Tests `spanlake doctor --model`: it says what a model cannot find."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spanlake import cli
from spanlake.modeling.model import SpanModel
from spanlake.package import load_package, save_package

Captured = pytest.CaptureFixture[str]


def checks(model: str, capsys: Captured) -> dict[str, dict[str, str]]:
    assert cli.main(["doctor", "--model", model, "--json"]) == 0
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_a_model_with_the_splitter_gliner(capsys: Captured) -> None:
    found = checks("mini", capsys)
    assert found["widest entity"]["says"].startswith("12 words")
    scripts = found["scripts"]
    assert scripts["verdict"] == "missing" and "Chinese, Japanese" in scripts["says"] and "Greek" not in scripts["says"]


def test_a_model_with_the_splitter_unicode(tiny_model_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    tiny = load_package(tiny_model_dir)
    model = SpanModel(replace(tiny.config, splitter="unicode"))
    save_package(tmp_path / "unicode", model, tiny.tokenizer.backend, name="tiny", metadata={}, card="")
    found = checks(str(tmp_path / "unicode"), capsys)
    assert found["scripts"]["verdict"] == "ok" and "splitter unicode" in found["words"]["says"]
    assert found["letters"]["verdict"] == "missing" and "Latin" not in found["letters"]["says"]  # its letters are ASCII


def test_an_unknown_model_is_named(capsys: Captured) -> None:
    assert cli.main(["doctor", "--model", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err
