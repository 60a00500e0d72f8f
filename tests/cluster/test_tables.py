"""Extraction from a table into a table on Ray, killed repeatedly, adds each row of one snapshot once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog, load_catalog

from spanlake import cli

SOURCE_ROOT = ROOT / "platform"
ROWS = 600


def rows(first: int, count: int, **more: Any) -> pa.Table:
    ids = range(first, first + count)
    texts = [None if i % 50 == 7 else f"Row {i}: Ada Lovelace went to Paris in {1800 + i}" for i in ids]
    columns = {name: [value] * count for name, value in more.items()}
    return pa.table({"id": pa.array(ids, pa.int64()), "text": texts, **columns})


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Returns the environment of a process that knows an Iceberg catalogue `lake`."""
    return {
        **os.environ,
        "PYTHONPATH": str(SOURCE_ROOT),
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{tmp_path}/catalog.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{tmp_path}/warehouse",
    }


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = load_catalog("lake", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("web")
    return catalog


def call(source: str, output: Path, into: str, model: Path) -> list[str]:
    options = ["--labels", "person,place", "--model", str(model), "--precision", "float32", "--unit-rows", "40"]
    return [sys.executable, "-m", "spanlake.cli", "extract", source, str(output), *options, "--into", into]


def kill_when(arguments: list[str], environment: dict[str, str], condition: Callable[[], bool]) -> bool:
    """Starts a run and kills it as soon as the condition holds. Returns whether it was killed before it ended."""
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 400
        while driver.poll() is None and not condition():
            assert time.monotonic() < deadline, "it came to nothing"
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        assert driver.stderr is not None
        said = driver.stderr.read().decode()
    assert driver.returncode in (-signal.SIGKILL, 0), said
    return driver.returncode != 0


def audited(output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = cli.main(["audit", str(output)])
    result = json.loads(capsys.readouterr().out)
    assert code == (0 if result["complete"] else 1)
    return result


@pytest.mark.timeout(1200)
def test_a_snapshot_reaches_the_other_table_once_whatever_is_killed(
    tiny_model_dir: Path,
    tmp_path: Path,
    environment: dict[str, str],
    catalog: Catalog,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_deltalake(tmp_path / "in", rows(0, ROWS // 2))
    write_deltalake(tmp_path / "in", rows(ROWS // 2, ROWS // 2, more=1.5), mode="append", schema_mode="merge")
    output, warehouse = tmp_path / "out", tmp_path / "warehouse"
    arguments = call(f"delta:{tmp_path}/in", output, "iceberg:lake.web.found", tiny_model_dir)

    def units() -> int:
        return len(list(output.glob("*.parquet")))

    enough = random.Random().randrange(1, 6)
    kills = kill_when(arguments, environment, lambda: units() >= enough)
    write_deltalake(
        tmp_path / "in", rows(ROWS, 10), mode="append", schema_mode="merge"
    )  # the output does not have these rows
    assert kills == 1 and not audited(output, capsys)["complete"] and not catalog.table_exists("web.found")

    # Kill it while it writes data files, and after the commit, before it can record the commit.
    kills += kill_when(arguments, environment, lambda: any(warehouse.rglob("*.parquet")))
    kill_when(arguments, environment, lambda: catalog.table_exists("web.found"))
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert kills >= 2

    result = audited(output, capsys)
    assert result["complete"] and result["output_rows"] == ROWS and result["failed_rows"] == ROWS // 50
    found = catalog.load_table("web.found").scan().to_arrow().sort_by("id")
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["more"].null_count == ROWS // 2
    committed = ds.dataset(output, format="parquet").to_table().sort_by("id")
    assert found["text"].to_pylist() == committed["text"].to_pylist()
    assert [row or [] for row in found["entities"].to_pylist()] == [
        row or [] for row in committed["entities"].to_pylist()
    ]
    assert len(catalog.load_table("web.found").snapshots()) == 1

    again = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0 and "already has all rows" in again.stderr
    assert DeltaTable(tmp_path / "in").version() == 2  # the source has not changed


def test_json_lines_to_redacted_mentions_and_into_delta(
    cluster: None, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    texts = [f"Row {i}: Ada Lovelace went to Paris" for i in range(120)]
    lines = [json.dumps({"key": f"k{i}", "text": text}) for i, text in enumerate(texts)]
    lines[60] = "{broken"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "part-00000-1f-c000.json").write_text("\n".join(lines))  # the names that Spark gives
    (tmp_path / "in" / "_SUCCESS").touch()
    monkeypatch.setenv("SPANLAKE_REDACTION_KEY", "0123456789abcdef")
    options = ["--labels", "person,place", "--model", str(tiny_model_dir), "--precision", "float32"]
    redacted = ["--redact", "hash", "--drop-text", "--layout", "mentions", "--key", "key"]
    arguments = ["extract", str(tmp_path / "in"), str(tmp_path / "out"), *options, *redacted]
    assert cli.main([*arguments, "--into", f"delta:{tmp_path}/found", "--json"]) == 0
    printed = capsys.readouterr()
    assert "spanlake: 1 file is not read, by name or content (_SUCCESS)" in printed.err
    assert json.loads(printed.out)["files_not_read"] == {"count": 1, "names": ["_SUCCESS"]}
    result = audited(tmp_path / "out", capsys)
    assert result["complete"] and result["output_rows"] == 120 and result["failed_rows"] == 1

    plain = ["extract", str(tmp_path / "in"), str(tmp_path / "plain"), *options]
    assert cli.main(plain) == 0
    expected = [
        (f"k{row}", entity["start"], entity["end"], entity["label"])
        for row, found in enumerate(ds.dataset(tmp_path / "plain").to_table().to_pylist())
        for entity in found["entities"] or []
    ]
    mentions = DeltaTable(tmp_path / "found").to_pyarrow_table().sort_by([("source_row", "ascending")]).to_pylist()
    errors = [mention for mention in mentions if mention["error"]]
    mentions = [mention for mention in mentions if not mention["error"]]
    assert [(error["source_row"], error["key"]) for error in errors] == [(60, None)]
    assert sorted((m["key"], m["start"], m["end"], m["label"]) for m in mentions) == sorted(expected)
    assert expected and all(m["text"].startswith(f"[{m['label'].upper()}:") for m in mentions)


def test_what_a_table_cannot_hold_is_refused_before_anything_is_written(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = pa.array([1_700_000_000_000_000_000, 1_700_000_000_000_000_001], pa.timestamp("ns", "America/Chicago"))
    pq.write_table(pa.table({"text": ["a", "b"], "at": at}), tmp_path / "in.parquet")
    arguments = ["extract", str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--labels", "person"]
    assert cli.main([*arguments, "--model", str(tiny_model_dir), "--into", f"delta:{tmp_path}/found"]) == 2
    assert (
        "The column at of in.parquet has a time that is not a whole number of microseconds" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "found").exists()
