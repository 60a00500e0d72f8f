"""Compares entities and a training curve with the golden files: a change of structure must change no result."""

import json
from pathlib import Path

import pytest

from tests.golden.make import HERE, entities, training_curve


@pytest.mark.slow
def test_the_demo_finds_the_golden_entities() -> None:
    golden = json.loads((HERE / "entities.json").read_text(encoding="utf-8"))
    found = entities()
    assert sum(map(len, golden)) > 500
    assert [[entity[:3] for entity in row] for row in found] == [[entity[:3] for entity in row] for row in golden]
    for row, expected in zip(found, golden, strict=True):
        assert [entity[3] for entity in row] == pytest.approx([entity[3] for entity in expected], abs=2e-4)


@pytest.mark.slow
def test_a_run_has_the_golden_training_curve(tmp_path: Path) -> None:
    golden = json.loads((HERE / "training_curve.json").read_text(encoding="utf-8"))
    assert training_curve(tmp_path / "run") == pytest.approx(golden, rel=2e-3)
