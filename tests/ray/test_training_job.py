"""`ray job submit` of training to a real head, whose workers run what was submitted, whatever is installed there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanlake.package import open_package

ROOT = Path(__file__).parents[2]
RECIPE = """
extends: jobs/recipes/mini-cpu.yaml
model:
  start: ""
  encoder_config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
    intermediate_size: 32}
  hidden_size: 32
schedule: {steps: 4, batch_texts: 4, batch_tokens: 1024, evaluate_every: 4}
checkpoint: {every: 4}
logging: {every: 1}
parallel: {workers: 2, zero_stage: 2}
"""


def run(directory: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=280)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head that takes jobs. No port of it is one that another Ray here may hold."""
    ports = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    numbers = {name: free_port() for name in [*ports, "metrics-export-port", "ray-client-server-port"]}
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
    command += ["--disable-usage-stats", *(f"--{name}={number}" for name, number in numbers.items())]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{numbers['dashboard-port']}"
    try:
        deadline = time.monotonic() + 200
        # The dashboard answers before the node's agent, which starts jobs, has joined it.
        while (trial := run(tmp_path, "ray", "job", "submit", "--address", address, "--", "true")).returncode:
            assert process.poll() is None and time.monotonic() < deadline, trial.stdout + trial.stderr
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.timeout(600)
def test_a_job_trains_on_two_workers_what_was_submitted(head: str, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("examples", "jobs", "platform"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    loop = checkout / "platform/spanlake/training/loop.py"
    marked = loop.read_text().replace('"torch": torch.__version__', '"torch": "as submitted"')
    assert marked != loop.read_text()
    loop.write_text(marked)
    (checkout / "tiny.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    job = ["python", "jobs/train.py", "tiny.yaml", "--directory", str(out)]
    done = run(checkout, "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4 of 4" in done.stdout and str(out / "package") in done.stdout
    assert open_package(str(out / "package")).metadata["training"]["torch"] == "as submitted"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {record["workers"] for record in records if "loss" in record} == {2}
    verified = run(checkout, "spanlake", "package", "verify", str(out / "package"))
    assert verified.returncode == 0, verified.stderr

    bad = run(checkout, "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *job, "seed=5")
    assert bad.returncode and "seed is 7 there and 5 here" in bad.stdout
    assert "Traceback" not in bad.stdout
