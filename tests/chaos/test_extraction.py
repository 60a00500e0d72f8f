"""Kills drivers, workers and nodes at random moments. The output equals that of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from pyarrow import fs

from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import read_ledger
from spanlake.storage import locate

SOURCE_ROOT = ROOT / "platform"
PEOPLE = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Émile du Châtelet")
FILES, ROWS = 4, 6000
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture
def nodes() -> Iterator[Any]:
    """Returns a head and two more nodes, in other processes than this one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    ids = range(FILES * ROWS)
    texts = [None if i % 50 == 7 else f"Row {i}: {PEOPLE[i % 4]} went to Paris in {1800 + i}" for i in ids]
    return pa.table({"id": pa.array(ids, pa.int64()), "text": pa.array(texts, pa.string())})


@pytest.fixture(scope="module")
def source(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    for file in range(FILES):
        part = table.slice(file * ROWS, ROWS)
        pq.write_table(part, directory / f"part-{file}.parquet", row_group_size=1000)
    return directory


def arguments(source: str, output: str, model: Path) -> list[str]:
    fixed = ["--model", str(model), "--precision", "float32", "--workers", "2", "--device", "cpu"]
    return ["extract", source, output, "--labels", "person,place", "--unit-rows", "200", *fixed]


@pytest.fixture(scope="module")
def undisturbed(source: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """Returns the units of an undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(**command(arguments(str(source), str(output), tiny_model_dir)), timeout=600)
    assert done.returncode == 0
    return units(str(output))


def units(output: str) -> dict[str, pa.Table]:
    place = locate(output)
    found = place.filesystem.get_file_info(fs.FileSelector(place.path))
    paths = [info.path for info in found if info.path.endswith(".parquet")]
    return {path.rpartition("/")[2]: pq.read_table(path, filesystem=place.filesystem) for path in paths}


def command(arguments: list[str], **variables: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT), **variables}
    return {"args": [sys.executable, "-m", "spanlake.cli", *arguments], "env": environment}


class Chaos:
    """Runs a command on the cluster until it succeeds, and kills `kills` processes at random moments before that."""

    def __init__(self, nodes: Any, seed: int) -> None:
        self._nodes = nodes
        self._random = random.Random(seed)
        self.killed = {"driver": 0, "worker": 0, "node": 0}

    def run(self, arguments: list[str], kills: int, log: Path) -> bool:
        """Returns whether the command succeeded before all kills were done."""
        deadline = time.monotonic() + 1500
        with log.open("ab") as file:
            while time.monotonic() < deadline:
                given = command(arguments, RAY_ADDRESS=self._nodes.address)
                driver = subprocess.Popen(**given, stdout=file, stderr=file)
                try:
                    while driver.poll() is None:
                        assert time.monotonic() < deadline, log.read_text()[-3000:]
                        if sum(self.killed.values()) < kills:
                            time.sleep(self._random.uniform(0.2, 6))
                            self._kill(driver)
                        else:
                            time.sleep(0.2)
                finally:
                    driver.kill()
                if driver.returncode == 0:
                    return sum(self.killed.values()) < kills
                # It was killed, or a node with all its workers died; a user runs it again.
                assert driver.returncode in (-signal.SIGKILL, 1), log.read_text()[-3000:]
        raise AssertionError(log.read_text()[-3000:])

    def _kill(self, driver: "subprocess.Popen[bytes]") -> None:
        kind = self._random.choice(("driver", "worker", "worker", "node"))
        if kind == "driver":
            if driver.poll() is not None:
                return
            driver.kill()
        elif kind == "worker":
            workers = [process for process in psutil.process_iter(["cmdline"]) if is_worker(process)]
            if not workers:
                return
            self._random.choice(workers).kill()
        else:
            node = self._random.choice(list(self._nodes.worker_nodes))
            self._nodes.remove_node(node, allow_graceful=False)  # SIGKILL of its raylet, with which its workers die
            self._nodes.add_node(**NODE)
        self.killed[kind] += 1


def is_worker(process: psutil.Process) -> bool:
    return "MapWorker" in " ".join(process.info["cmdline"] or [])


def assert_undisturbed(output: str, undisturbed: dict[str, pa.Table]) -> None:
    result = audit(read_ledger(locate(output)))
    assert result.complete and result.problems == []
    found = units(output)
    assert found.keys() == undisturbed.keys()
    for name, table in found.items():
        assert table.equals(undisturbed[name], check_metadata=False), name


def storm(
    make: Callable[[int], tuple[list[str], str]], nodes: Any, kills: int, tmp_path: Path, check: Callable[[int], None]
) -> None:
    """Runs extractions one after another until `kills` are done, and checks each complete one."""
    chaos, turn = Chaos(nodes, seed=11), 0
    while chaos.run(make(turn)[0], kills, tmp_path / "log"):
        check(turn)
        turn += 1
    check(turn)
    print(f"killed {chaos.killed} over {turn + 1} extractions")
    assert sum(chaos.killed.values()) >= kills


@pytest.mark.timeout(2400)
def test_whatever_is_killed_the_output_is_the_same(
    nodes: Any, source: Path, undisturbed: dict[str, pa.Table], tiny_model_dir: Path, tmp_path: Path
) -> None:
    def make(turn: int) -> tuple[list[str], str]:
        output = str(tmp_path / f"out-{turn}")
        return arguments(str(source), output, tiny_model_dir), output

    storm(make, nodes, 30, tmp_path, lambda turn: assert_undisturbed(make(turn)[1], undisturbed))


@pytest.mark.timeout(1800)
def test_so_it_is_in_object_storage(
    nodes: Any, source: Path, undisturbed: dict[str, pa.Table], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        filesystem, _ = fs.FileSystem.from_uri(f"s3://name:secret@lake?{options}")
        filesystem.create_dir("lake")
        fs.copy_files(str(source), "lake/in", destination_filesystem=filesystem)

        def make(turn: int) -> tuple[list[str], str]:
            output = f"s3://name:secret@lake/out-{turn}?{options}"
            return arguments(f"s3://name:secret@lake/in/*.parquet?{options}", output, tiny_model_dir), output

        storm(make, nodes, 10, tmp_path, lambda turn: assert_undisturbed(make(turn)[1], undisturbed))
    finally:
        server.stop()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_so_it_is_in_tables(
    kind: str, nodes: Any, table: pa.Table, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction from a table into another of the same kind adds each row once."""
    from deltalake import DeltaTable, write_deltalake
    from pyiceberg.catalog import load_catalog

    properties = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    for name, value in properties.items():  # for the command; in this process, pyiceberg read them when it was imported
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper()}", value)

    def rows(turn: int) -> pa.Table:
        if kind == "delta":
            found = DeltaTable(tmp_path / f"found-{turn}").to_pyarrow_table()
        else:
            found = load_catalog("lake", **properties).load_table(f"db.found{turn}").scan().to_arrow()
        return found.sort_by("id")

    if kind == "delta":
        write_deltalake(tmp_path / "pages", table)
        source, target = f"delta:{tmp_path}/pages", f"delta:{tmp_path}/found-{{}}"
    else:
        (tmp_path / "warehouse").mkdir()
        catalog = load_catalog("lake", **properties)
        catalog.create_namespace("db")
        catalog.create_table("db.pages", schema=table.schema).append(table)
        source, target = "iceberg:lake.db.pages", "iceberg:lake.db.found{}"

    def make(turn: int) -> tuple[list[str], str]:
        output = str(tmp_path / f"out-{turn}")
        return [*arguments(source, output, tiny_model_dir), "--into", target.format(turn)], output

    def check(turn: int) -> None:
        assert audit(read_ledger(locate(make(turn)[1]))).complete
        stands = pa.concat_tables(units(make(turn)[1]).values()).sort_by("id")
        assert stands.select(["id", "text"]).equals(table)
        assert rows(turn)["id"].equals(stands["id"])
        found, wanted = rows(turn)["entities"].to_pylist(), stands["entities"].to_pylist()
        assert [entities or [] for entities in found] == [entities or [] for entities in wanted]  # as pyiceberg reads
        again = subprocess.run(**command(make(turn)[0]), capture_output=True, timeout=300)
        assert again.returncode == 0 and b"already has all rows" in again.stderr
        assert len(rows(turn)) == len(table)

    storm(make, nodes, 10, tmp_path, check)
