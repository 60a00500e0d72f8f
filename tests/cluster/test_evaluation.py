"""Evaluation on a pool of Ray actors gives the same answers as in one process."""

import json
from pathlib import Path

import pytest

from spanlake import UserError, cli
from spanlake.evaluation.pool import ModelChoice, evaluate_on_ray
from spanlake.evaluation.sets import read_sets

TEXTS = ["Ada Lovelace met Charles Babbage in London.", "The union fell in June.", "Where, Geneva?"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns two sets; one of them needs more than one task."""
    directory = tmp_path_factory.mktemp("sets")
    for name, count in (("one", 2), ("two", 300)):
        records = [
            {"text": f"{TEXTS[i % 3]} {i}", "mentions": [{"start": 0, "end": 3, "label": "person"}]}
            for i in range(count)
        ]
        (directory / f"{name}_test.jsonl").write_text("\n".join(map(json.dumps, records)))
    return directory


def test_workers_find_what_one_process_finds(
    cluster: None, tiny_model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    call = ["evaluate", "--data", str(data), "--model", str(tiny_model_dir), "--threshold", "0.4", "--json"]
    call += ["--device", "cpu", "--precision", "float32"]
    assert cli.main(call) == 0
    alone = json.loads(capsys.readouterr().out)
    assert cli.main([*call, "--workers", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == alone
    assert [each["texts"] for each in alone["sets"]] == [2, 300]


def test_a_model_that_cannot_be_loaded_is_named(cluster: None, data: Path, tmp_path: Path):
    choice = ModelChoice(str(tmp_path / "no/model"), "cpu", "float32")
    with pytest.raises(UserError, match="no/model"):
        evaluate_on_ray(choice, read_sets(data, "test"), threshold=0.5, nested=False, workers=1)
