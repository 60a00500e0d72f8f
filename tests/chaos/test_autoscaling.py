"""The node types of cluster.yaml on one machine: jobs start the nodes that they need, and idle nodes stop.

Ray's provider of fake nodes starts each node as processes of this machine. A fake CPU worker has one CPU.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import ROOT, activated, free_port
from ray._raylet import GcsClient
from ray.autoscaler._private.util import prepare_config
from ray.util import get_node_ip_address

from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import read_ledger
from spanlake.storage import locate

HEAD = "f" * 51 + "0" * 5  # the id that the provider gives the head
STORE = 100_000_000  # bytes of a node's object store


def fake(address: str) -> dict[str, Any]:
    """Returns cluster.yaml with nodes of this machine in place of AWS's."""
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")))
    types = config["available_node_types"]
    del types["gpu-worker"]
    for name, kind in types.items():
        kind["node_config"] = {}
        kind["resources"] = {"CPU": 0 if name == "head" else 1, "object_store_memory": STORE}
        kind["max_workers"] = 0 if name == "head" else 2
    types["ray.head.default"] = types.pop("head")  # the name that Ray gives the head of fake nodes
    config |= {"head_node_type": "ray.head.default", "idle_timeout_minutes": 0.2, "auth": {}, "file_mounts": {}}
    config["provider"] = {"type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD}
    config["provider"] |= {"launch_multiple": True, "disable_node_updaters": True, "use_node_id_as_ip": True}
    return config


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("head")
    port = free_port()
    address = f"{get_node_ip_address()}:{port}"
    (directory / "cluster.json").write_text(json.dumps(fake(address)))
    command = ["ray", "start", "--head", "--block", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"]
    command += [f"--object-store-memory={STORE}", f"--temp-dir={directory / 'ray'}"]
    command += ["--autoscaling-config=cluster.json", "--disable-usage-stats"]
    variables = {**activated(), "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    variables |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    with open(directory / "log", "wb") as log:
        head = subprocess.Popen(command, cwd=directory, env=variables, stdout=log, stderr=log)
    try:
        wait_for(lambda: nodes(address) == 1 or head.poll() is not None)
        assert head.poll() is None, (directory / "log").read_text()
        yield address
    finally:
        for part in [*psutil.Process(head.pid).children(recursive=True), head]:
            part.kill()
        head.wait(60)


def nodes(address: str) -> int:
    """Returns the number of nodes that are alive, the head included."""
    try:
        found = GcsClient(address=address).get_all_node_info(timeout=5)
    except Exception:  # the head is not up
        return 0
    return sum(node.state == 0 for node in found.values())


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def grows_and_shrinks(address: str, *arguments: str) -> None:
    """Runs a command on the cluster. Checks that two nodes start for it, and stop after it."""
    wait_for(lambda: nodes(address) == 1)
    variables = {**os.environ, **activated(), "PYTHONPATH": str(ROOT / "platform"), "RAY_ADDRESS": address}
    with subprocess.Popen(["spanlake", *arguments], env=variables) as command:
        try:
            wait_for(lambda: nodes(address) == 3 or command.poll() is not None)
            assert nodes(address) == 3
            assert command.wait(280) == 0
        finally:
            command.kill()
    wait_for(lambda: nodes(address) == 1)


def test_an_extraction(address: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = [f"Row {i}: Ada Lovelace went to Paris" for i in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    arguments = ["extract", str(tmp_path / "texts.parquet"), str(tmp_path / "found"), "--labels", "person,place"]
    grows_and_shrinks(address, *arguments, "--model", str(tiny_model_dir), "--workers", "2", "--unit-rows", "20")
    found = audit(read_ledger(locate(str(tmp_path / "found"))))
    assert found.complete and found.output_rows == len(texts)


def test_a_training(address: str, tmp_path: Path) -> None:
    recipe = str(ROOT / "jobs/recipes/mini-types-cpu.yaml")
    changes = ["parallel.workers=2", "schedule.steps=2"]
    grows_and_shrinks(address, "train", recipe, *changes, "--directory", str(tmp_path / "run"))
    assert (tmp_path / "run/package/model.safetensors").exists()
