"""`spanlake extract` writes every row once, despite all failures. With real Ray and a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
from commands import ROOT
from scripts import SCRIPTS, cluster_edges

from spanlake import Entity, Extractor, cli
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import read_ledger
from spanlake.inference.settings import Settings
from spanlake.storage import locate

SOURCE_ROOT = ROOT / "platform"
PEOPLE = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Émilie du Châtelet")
LABELS = "person,place"


def write_source(directory: Path, files: int, rows: int) -> Path:
    """Writes files with `rows` rows each, in row groups of 100. Ids run through all files. Every 50th text is null."""
    directory.mkdir(parents=True)
    for file in range(files):
        ids = range(file * rows, (file + 1) * rows)
        texts = [None if i % 50 == 7 else f"Row {i}: {PEOPLE[i % 4]} went to Paris in {1800 + i}" for i in ids]
        table = pa.table({"id": pa.array(ids, pa.int64()), "text": pa.array(texts, pa.string())})
        pq.write_table(table, directory / f"part-{file}.parquet", row_group_size=100)
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("data") / "source", files=3, rows=250)


def call(*arguments: object, model: Path) -> list[str]:
    """Returns the arguments of `extract` with the tiny model in float32, where scores do not depend on batches."""
    return [
        "extract",
        *map(str, arguments),
        *("--labels", LABELS, "--model", str(model), "--precision", "float32", "--unit-rows", "40"),
    ]


def command(arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    return {"args": [sys.executable, "-m", "spanlake.cli", *arguments], "env": environment, "text": True}


def report(output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Returns what `spanlake audit` prints, after a check of its exit code."""
    capsys.readouterr()
    code = cli.main(["audit", str(output)])
    result = json.loads(capsys.readouterr().out)
    assert code == (0 if result["complete"] else 1)
    return result


def read(output: Path) -> list[dict[str, Any]]:
    return ds.dataset(output, format="parquet").to_table().to_pylist()


# --- complete runs ------------------------------------------------------------------------------------------------


def test_every_row_once_and_as_the_extractor_finds_it(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main([*call(source, output, model=tiny_model_dir), "--workers", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["complete"] and summary["rows"] == summary["source_rows"] == 750
    assert summary["failed_rows"] == 15 and summary["workers"] == {"min": 2, "max": 2, "device": "cpu", "threads": 1}

    rows = read(output)
    assert [row["id"] for row in rows] == list(range(750))
    texts = [row["text"] for row in rows if row["text"] is not None]
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    expected = iter(extractor.extract(texts, LABELS.split(",")))
    for row in rows:
        if row["text"] is None:
            assert row["entities"] is None and row["error"] == "text is null"
            continue
        assert row["error"] is None
        entities = [Entity(**entity) for entity in row["entities"]]
        wanted = next(expected)
        assert [(e.start, e.end, e.text, e.label) for e in entities] == [
            (e.start, e.end, e.text, e.label) for e in wanted
        ]
        assert [e.score for e in entities] == pytest.approx([e.score for e in wanted], abs=1e-5)
        assert all(row["text"][e.start : e.end] == e.text for e in entities)

    result = report(output, capsys)
    assert result["complete"] and result["output_rows"] == 750 and result["failed_rows"] == 15
    assert result["entities"] == summary["entities"] == sum(len(row["entities"] or []) for row in rows) > 0
    assert result["by_label"] == summary["by_label"] and set(result["by_label"]) == {"person", "place"}
    assert result["model"] == summary["model"]

    assert cli.main(["show", str(output), "--examples", "2"]) == 0
    assert "person" in capsys.readouterr().out


def test_a_run_tells_prometheus_what_it_has_done(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert cli.main(call(source, output, model=tiny_model_dir)) == 0
    [node] = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = re.compile(
        rf'^ray_spanlake_extraction_(\w+){{.*output="{re.escape(str(output))}".*}} (\S+)$', re.MULTILINE
    )
    deadline = time.monotonic() + 100
    while (found := dict(wanted.findall(httpx.get(address).text))).get("rows_total") != "750.0":
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found["failed_rows_total"] == "15.0" and found["pending_rows"] == "0.0"
    assert float(found["entities_total"]) > 0


def test_chosen_rows_and_columns(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = ["--where", "id >= 90 AND text LIKE '%Grace%'", "--limit", "50", "--columns", "id"]
    assert cli.main([*call(source, output, model=tiny_model_dir), *options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["complete"] and summary["rows"] == summary["source_rows"] == 50
    rows = read(output)
    assert [row["id"] for row in rows] == [i for i in range(90, 750) if i % 4 == 2 and i % 50 != 7][:50]
    assert all(list(row) == ["id", "entities", "error"] and row["entities"] for row in rows)
    result = report(output, capsys)
    assert result["complete"] and result["output_rows"] == 50
    assert cli.main([*call(source, output, model=tiny_model_dir), *options]) == 0
    assert "was already complete with all 50 rows" in capsys.readouterr().out
    assert cli.main([*call(source, output, model=tiny_model_dir), *options[2:]]) == 2
    assert "where id >= 90 AND text LIKE '%Grace%' in the output, none requested" in capsys.readouterr().err


def test_a_pool_that_grows(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main([*call(source, output, model=tiny_model_dir), "--workers", "1:2", "--json"]) == 0
    printed = capsys.readouterr()
    assert "workers: 1 to 2 x tiny" in printed.err and "rows/s" in printed.err
    assert json.loads(printed.out)["workers"] == {"min": 1, "max": 2, "device": "cpu", "threads": 1}
    assert report(output, capsys)["complete"]


def test_the_same_command_again_does_nothing(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = call(source / "part-0.parquet", output, model=tiny_model_dir)
    assert cli.main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert cli.main(arguments) == 0
    assert "was already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")} == before

    first = next(iter(before))
    first.unlink()
    assert cli.main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 250 - summary["resumed_rows"] and summary["units"] - summary["resumed_units"] == 1
    assert report(output, capsys)["complete"]


def test_sources_without_rows(
    cluster: None, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    for name in "ab":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none" / f"{name}.parquet")
    assert cli.main(call(tmp_path / "none", tmp_path / "out", model=tiny_model_dir)) == 0
    assert report(tmp_path / "out", capsys)["complete"]
    assert ds.dataset(tmp_path / "out", format="parquet").schema.names == ["text", "entities", "error"]


def test_labels_by_description_from_a_file(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"who": "a human being", "where": "a place on a map"}
    (tmp_path / "labels.yaml").write_text(json.dumps(labels))
    arguments = ["extract", str(source / "part-0.parquet"), str(tmp_path / "out"), "--model", str(tiny_model_dir)]
    assert cli.main([*arguments, "--labels", f"@{tmp_path}/labels.yaml", "--precision", "float32"]) == 0
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    rows = [row for row in read(tmp_path / "out") if row["text"] is not None]
    expected = extractor.extract([row["text"] for row in rows], labels)
    assert [[e["label"] for e in row["entities"]] for row in rows] == [[e.label for e in found] for found in expected]


# --- failures during a run ----------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_stopped_and_killed_in_the_middle_and_started_again(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", files=3, rows=1000)
    output = tmp_path / "out"
    arguments = call(source, output, model=tiny_model_dir)

    def units() -> int:
        return len(list(output.glob("*.parquet")))

    with subprocess.Popen(**command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        wait_for(lambda: units() >= 3 or driver.poll() is not None)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143, said
    assert said.splitlines()[-1].startswith("spanlake: stopped; committed units stay"), said
    stopped_with = units()

    with subprocess.Popen(**command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: units() >= stopped_with + 3 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL, "it ended before it could be killed"
    result = report(output, capsys)
    assert not result["complete"] and 0 < result["missing_rows"] < 3_000 and not result["duplicate_rows"]
    assert [entry.name for entry in output.iterdir() if not entry.name.endswith(".parquet")] == ["_spanlake"]

    done = subprocess.run(**command([*arguments, "--json"]), capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["resumed_units"] >= 5 and summary["resumed_rows"] + summary["rows"] == 3_000
    result = report(output, capsys)
    assert result["complete"] and result["output_rows"] == 3_000
    assert [row["id"] for row in read(output)] == list(range(3_000))
    assert not list((output / "_spanlake" / "tmp").iterdir())


def test_texts_in_every_script_by_a_token_level_model_killed_and_resumed(
    cluster: None, token_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first driver joins the cluster of these tests, so that only the driver must start."""
    texts = [f"{text} {number}" for number in range(60) for text, _ in SCRIPTS.values()]
    (tmp_path / "lake").mkdir()
    for part in range(3):
        table = pa.table({"text": texts[part::3], "id": range(part, len(texts), 3)})
        pq.write_table(table, tmp_path / "lake" / f"part-{part}.parquet", row_group_size=80)
    output = tmp_path / "out"
    arguments = [*call(tmp_path / "lake", output, model=token_model_dir), "--threshold", "0.02", "--workers", "1"]

    process = command(arguments)
    process["env"]["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with subprocess.Popen(**process, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: len(list(output.glob("*.parquet"))) >= 2 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not report(output, capsys)["complete"]

    assert cli.main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["resumed_units"] >= 2 and summary["resumed_rows"] + summary["rows"] == len(texts)
    assert report(output, capsys)["complete"]
    rows = read(output)
    assert sorted(row["id"] for row in rows) == list(range(len(texts)))
    extractor = Extractor.load(str(token_model_dir), device="cpu", precision="float32")
    expected = extractor.extract([row["text"] for row in rows], LABELS.split(","), threshold=0.02)
    scripts = set()
    for row, wanted in zip(rows, expected, strict=True):
        found = [Entity(**entity) for entity in row["entities"]]
        assert [(e.start, e.end, e.label) for e in found] == [(e.start, e.end, e.label) for e in wanted]
        assert all(row["text"][e.start : e.end] == e.text for e in found)
        assert {edge for e in found for edge in (e.start, e.end)} <= cluster_edges(row["text"])
        scripts |= {row["id"] % len(SCRIPTS)} if found else set()
    assert len(scripts) == len(SCRIPTS)


def prepare_run(source: Path, output: Path, model: Path) -> Any:
    """Returns a request for the pipeline itself, so that a test can replace the extractor."""
    from spanlake.extraction.output.ledger import Request
    from spanlake.extraction.source.open import read_source
    from spanlake.package import open_package

    return Request(
        source=read_source(str(source), ("text",)),
        output=locate(str(output)),
        text_columns=("text",),
        settings=Settings.make(LABELS.split(",")),
        model_name="tiny",
        model_fingerprint=open_package(str(model)).fingerprint,
        precision="float32",
        unit_rows=40,
    )


def faulty(model: Path, fault: Callable[[str], None]) -> Callable[..., Any]:
    """Loads the tiny model on a worker, and calls `fault` with each text before the model."""

    class Faulty:
        def __init__(self, extractor: Extractor) -> None:
            self.extractor = extractor
            self.package, self.device, self.precision = extractor.package, extractor.device, extractor.precision

        def stream(
            self, requests: Iterable[tuple[str, Settings]], on_pass: Callable[[int], None] | None = None
        ) -> Iterator[list[Entity]]:
            requests = list(requests)
            for text, _ in requests:
                fault(text)
            return self.extractor.stream(requests, on_pass)

    def load(*, device: str, threads: int) -> Faulty:
        return Faulty(Extractor.load(str(model), device=device, precision="float32", threads=threads))

    return load


def execute(request: Any, load: Callable[..., Any]) -> Any:
    from spanlake.extraction.run import execute

    return execute.execute(request, load, workers=(1, 1), device="cpu", say=lambda message: None)


@pytest.mark.parametrize("tasks", [10_000, 2])
def test_a_worker_that_is_killed_is_replaced(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    """With two tasks, many units go together. Ray then repeats the whole task, which does not write them again."""
    from spanlake.extraction.run import pipeline

    monkeypatch.setattr(pipeline, "_TASKS", tasks)
    marker, output = tmp_path / "killed", tmp_path / "out"

    def kill_once(text: str) -> None:
        if "Row 333:" in text and not marker.exists():
            marker.write_text(json.dumps({path.name: path.stat().st_ino for path in output.glob("*.parquet")}))
            os.kill(os.getpid(), signal.SIGKILL)

    request = prepare_run(source, output, tiny_model_dir)
    summary = execute(request, faulty(tiny_model_dir, kill_once))
    assert not summary.problems and summary.rows == 750
    committed = json.loads(marker.read_text())
    assert len(committed) > 5
    assert {name: (output / name).stat().st_ino for name in committed} == committed
    result = audit(read_ledger(request.output))
    assert result.complete and result.output_rows == 750
    assert [row["id"] for row in read(output)] == list(range(750))


def test_a_row_that_kills_its_workers_costs_only_itself(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    def kill(text: str) -> None:
        if "Row 333:" in text:
            os.kill(os.getpid(), signal.SIGKILL)

    request = prepare_run(source, tmp_path / "out", tiny_model_dir)
    summary = execute(request, faulty(tiny_model_dir, kill))
    assert summary.problems == [] and summary.failed_rows == 16
    errors = {row["id"]: row["error"] for row in read(tmp_path / "out") if row["error"] not in (None, "text is null")}
    assert errors == {333: "reading the text killed the worker, twice"}
    assert audit(read_ledger(request.output)).complete


def test_a_unit_that_kills_every_worker_is_left_out_and_told(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanlake.extraction.run.pipeline._ATTEMPTS", 2)

    def kill(text: str) -> None:
        if "Row 333:" in text:
            time.sleep(1)  # the worker's other unit waits; this must not count as an attempt at it
            os.kill(os.getpid(), signal.SIGKILL)

    request = prepare_run(source, tmp_path / "out", tiny_model_dir)
    summary = execute(request, faulty(tiny_model_dir, kill))
    (problem,) = summary.problems
    assert "part-1.parquet" in problem and "too many workers died over it" in problem
    result = audit(read_ledger(request.output))
    assert not result.complete and 0 < result.missing_rows <= 40
    assert execute(request, faulty(tiny_model_dir, print)).problems == []
    assert audit(read_ledger(request.output)).complete


def test_a_row_that_cannot_be_read_costs_only_itself(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    def refuse(text: str) -> None:
        if "Row 333:" in text:
            raise ArithmeticError("too many digits")

    request = prepare_run(source, tmp_path / "out", tiny_model_dir)
    assert execute(request, faulty(tiny_model_dir, refuse)).failed_rows == 16
    errors = {row["id"]: row["error"] for row in read(tmp_path / "out") if row["error"] not in (None, "text is null")}
    assert errors == {333: "ArithmeticError: too many digits"}
    assert audit(read_ledger(request.output)).complete


def test_a_model_that_cannot_be_loaded_stops_the_run_in_one_sentence(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from spanlake.errors import ShortfallError

    def load(*, device: str, threads: int) -> Extractor:
        raise OSError("no such disk")

    with pytest.raises(ShortfallError, match=r"stopped \(OSError: no such disk\)"):
        execute(prepare_run(source, tmp_path / "out", tiny_model_dir), load)


def test_a_worker_with_another_model_stops_the_run(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from spanlake.errors import ShortfallError

    request = replace(prepare_run(source, tmp_path / "out", tiny_model_dir), model_fingerprint="0" * 64)
    with pytest.raises(ShortfallError, match="give every node the same package"):
        execute(request, partial(Extractor.load, str(tiny_model_dir), precision="float32"))
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_damaged_pages_cost_only_their_unit(
    cluster: None, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", files=2, rows=100)
    path = source / "part-1.parquet"
    content = bytearray(path.read_bytes())
    content[1000:1200] = bytes(200)
    path.write_bytes(content)
    assert cli.main(call(source, tmp_path / "out", model=tiny_model_dir)) == 1
    assert "of part-1.parquet cannot be read" in capsys.readouterr().err
    result = report(tmp_path / "out", capsys)
    assert not result["complete"] and result["missing_rows"] == 100 and result["output_rows"] == 100


# --- wrong calls --------------------------------------------------------------------------------------------------


def test_a_wrong_call_is_one_line_and_leaves_nothing(source: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Runs the command as a process, and returns its exit code and output."""
    output = tmp_path / "out"
    arguments = call(source, output, model=tiny_model_dir)
    done = subprocess.run(**command([*arguments, "--text-column", "body"]), capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "no column called body" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--text-column", "id"], "id holds int64"),
        (["--threshold", "1.5"], "threshold 1.5"),
        (["--labels", ""], "no labels"),
        (["--device", "cuda:1"], "Ray chooses the GPU"),
        (["--model", "nowhere"], "nowhere"),
        (["--precision", "float8"], "float8"),
        (["--device", "cuda"], "the Ray cluster has none"),
        (["--workers", "0"], "'0' is not a number of at least 1, or two such numbers"),
        (["--workers", "3:2"], "'3:2' is not a number of at least 1, or two such numbers"),
        (["--unit-rows", "many"], "'many' is not a whole number"),
    ],
)
def test_wrong_settings(
    cluster: None,
    source: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    expected: str,
) -> None:
    assert refusal([*call(source, tmp_path / "out", model=tiny_model_dir), *changes], capsys).count(expected) == 1
    assert not (tmp_path / "out").exists()


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a wrong call prints."""
    capsys.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_wrong_sources(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    whole = write_source(tmp_path / "whole", files=1, rows=10) / "part-0.parquet"
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:-30])
    pq.write_table(pa.table({"text": ["x"], "entities": [1]}), tmp_path / "taken.parquet")
    for name, expected in (
        ("missing", "does not exist"),
        ("*.csv", "matches no file"),
        ("empty", "holds no file to read"),
        ("text.parquet", "not a whole Parquet file"),
        ("half.parquet", "not a whole Parquet file"),
        ("taken.parquet", "already has a column called entities"),
    ):
        assert expected in refusal(call(tmp_path / name, tmp_path / "out", model=tiny_model_dir), capsys)
        assert not (tmp_path / "out").exists()


def test_another_result_is_refused(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = call(source / "part-0.parquet", output, model=tiny_model_dir)
    assert cli.main(arguments) == 0
    message = refusal([*arguments, "--threshold", "0.6"], capsys)
    assert "threshold 0.5 in the output, 0.6 requested" in message
    assert "part-0.parquet is no longer in" in refusal(
        call(source / "part-1.parquet", output, model=tiny_model_dir), capsys
    )
    assert report(output, capsys)["complete"]

    other = [*call(source / "part-1.parquet", output, model=tiny_model_dir), "--overwrite"]
    (output / "mine.txt").write_text("not the output's")
    before = sorted(output.rglob("*"))
    assert "holds mine.txt, which is not part of the output" in refusal(other, capsys)
    assert sorted(output.rglob("*")) == before
    (output / "mine.txt").unlink()
    assert cli.main(other) == 0
    assert [row["id"] for row in read(output)] == list(range(250, 500))
    assert report(output, capsys)["complete"]


def test_a_run_stops_where_too_many_rows_fail(
    cluster: None, source: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"  # 250 rows, of which 5 are null
    arguments = call(source / "part-0.parquet", output, model=tiny_model_dir)
    assert cli.main([*arguments, "--workers", "1", "--max-error-rate", "0.004"]) == 1
    assert "2 of 250 rows could not be read, and --max-error-rate 0.004 does not allow more" in capsys.readouterr().err
    assert read(output)  # committed units stay; a fast worker has committed all of them by then
    assert cli.main([*arguments, "--max-error-rate", "0.02"]) == 0
    assert report(output, capsys)["complete"]

    before = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert cli.main([*arguments, "--retry-errors", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    again = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert len(again) == summary["units"] - summary["resumed_units"] == 5 and summary["failed_rows"] == 5
    assert all(any(row["error"] for row in pq.read_table(path).to_pylist()) for path in again)
    assert report(output, capsys)["complete"]
    assert "'2' is not a number from 0 to 1" in refusal([*arguments, "--max-error-rate", "2"], capsys)


def test_without_ray_it_says_what_to_install(tiny_model_dir: Path, source: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['ray'] = None; from spanlake import cli; sys.exit(cli.main(sys.argv[1:]))"
    arguments = call(source, tmp_path / "out", model=tiny_model_dir)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install 'spanlake[ray]'" in done.stderr
