"""`extract --dry-run` estimates from rows of all files and writes nothing."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanlake import Extractor, cli
from spanlake.extraction.output.ledger import Request, prepare
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.run import estimate
from spanlake.extraction.run.unit import Job, UnitRunner
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.storage import locate

LABELS = "person,place"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files with equal texts; one text in ten is null."""
    (tmp_path / "source").mkdir()
    texts = [None if row % 10 == 0 else "Ada Lovelace met Charles Babbage in London" for row in range(200)]
    for name in "abc":
        pq.write_table(pa.table({"name": [name] * 200, "text": texts}), tmp_path / "source" / f"{name}.parquet")
    return tmp_path / "source"


def call(source: Path, model: Path, *more: str) -> list[str]:
    output = str(source.parent / "out")
    options = ("--labels", LABELS, "--model", str(model), "--precision", "float32", "--unit-rows", "10", "--dry-run")
    return ["extract", str(source), output, *options, *more]


def test_an_estimate_scales_what_a_sample_took(source: Path, tiny_model_dir: Path, capsys) -> None:
    assert cli.main(call(source, tiny_model_dir, "--workers", "2", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source_rows"] == found["pending_rows"] == 600 and found["sampled_rows"] == 128
    assert found["seconds"] == pytest.approx(found["sampled_seconds"] * 600 / 128 / 2, abs=0.1)
    assert not (source.parent / "out").exists()

    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    [entities] = extractor.extract(["Ada Lovelace met Charles Babbage in London"], LABELS.split(","))
    read = 600 * (1 - found["failed_rows"] / 600)
    assert 400 < read < 600  # the first rows of units have more nulls than others
    assert found["entities"] == pytest.approx(read * len(entities), rel=0.02)
    assert found["tokens"] == pytest.approx(read * 7, rel=0.02)  # each word is one token of the tiny tokenizer


def test_an_estimate_of_the_output_is_near_it(source: Path, tiny_model_dir: Path) -> None:
    request = make_request(source, tiny_model_dir)
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    found = estimate.sample(request, extractor).as_json(workers=1)
    ledger = prepare(request)
    ledger.save()
    runner = UnitRunner(Job.of(request, ledger), extractor)
    units = list(units_of(ledger.plan))
    for unit in units[:-1]:
        runner.run(unit)
    written = sum(path.stat().st_size for path in (source.parent / "out").glob("*.parquet"))
    assert 0.25 * written < found["output_bytes"] < 2 * written  # units of ten rows are mostly footers

    again = estimate.sample(request, extractor)
    assert again.pending_rows == again.rows == units[-1].rows < again.source_rows
    runner.run(units[-1])
    done = estimate.sample(request, extractor).as_json(workers=1)
    assert done["pending_rows"] == done["seconds"] == done["output_bytes"] == 0


def make_request(source: Path, model: Path) -> Request:
    return Request(
        source=read_source(str(source), ("text",)),
        output=locate(str(source.parent / "out")),
        text_columns=("text",),
        settings=Settings.make(LABELS.split(",")),
        model_name="tiny",
        model_fingerprint="f",
        precision="float32",
        unit_rows=10,
    )


def test_rows_come_from_all_files_until_there_is_enough(source: Path, tiny_model_dir: Path, monkeypatch) -> None:
    request = make_request(source, tiny_model_dir)
    plan = prepare(request).plan
    assert {unit.path for unit in estimate._spread(plan)} == {"a.parquet", "b.parquet", "c.parquet"}
    monkeypatch.setattr(estimate, "CHARACTERS", 1)
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    assert estimate.sample(request, extractor).rows == 4


def test_people_read_an_estimate(source: Path, tiny_model_dir: Path, capsys) -> None:
    assert cli.main(call(source, tiny_model_dir)) == 0
    printed = capsys.readouterr().out
    for part in ("128 rows read and extracted, of 600", "rows/s", "about", "entities:", "output:", "examples", "["):
        assert part in printed


def test_a_dry_run_refuses_what_the_run_would(source: Path, tiny_model_dir: Path, capsys) -> None:
    prepare(make_request(source, tiny_model_dir)).save()
    assert cli.main(call(source, tiny_model_dir, "--threshold", "0.9")) == 2
    assert "was extracted with other values" in capsys.readouterr().err
