"""Training on Ray Train with DeepSpeed: several workers learn the same as one, despite kills of all kinds.

All runs use one recipe without dropout, so that their losses can be compared step by step.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from commands import ROOT, free_port
from ray.cluster_utils import Cluster
from ray.train import Result

from spanlake.errors import UserError
from spanlake.package import load_package, open_package
from spanlake.storage import locate
from spanlake.training import launch as launching
from spanlake.training.command import _prepare
from spanlake.training.data import recipe_data
from spanlake.training.directory import claim
from spanlake.training.launch import launch
from spanlake.training.processes import train_here
from spanlake.training.recipe import Recipe, read_recipe
from tests.conftest import TINY_ENCODER

PEOPLE = ["Ada Lovelace", "Charles Babbage", "Marie Curie", "Alain Farley"]
PLACES = ["London", "Geneva", "Warsaw", "Canada"]
OTHERS = ["the", "union", "of", "nations", "said", "she", "fell"]
STEPS = 12
STORE = 100_000_000  # bytes of the object store


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a recipe of 12 steps on 300 sentences, with a model of random weights."""
    directory = tmp_path_factory.mktemp("training")
    rng = random.Random(1)
    with open(directory / "sentences.jsonl", "w", encoding="utf-8") as file:
        for _ in range(300):
            person, place = rng.choice(PEOPLE).split(), rng.choice(PLACES).split()
            words = [*person, "met", "in", *place, *rng.choices(OTHERS, k=rng.randrange(1, 12))]
            spans = [[0, len(person) - 1, "person"], [len(person) + 2, len(person) + 1 + len(place), "place"]]
            file.write(json.dumps({"tokenized_text": words, "ner": spans}) + "\n")
    recipe = {
        "name": "tiny",
        "model": {
            "encoder_config": TINY_ENCODER,
            "hidden_size": 32,
            "max_width": 4,
            "dropout": 0.0,
            "encoder_dropout": 0.0,
        },
        "data": {"train": ["sentences.jsonl"], "root": str(directory), "held_out": 20},
        "schedule": {"steps": STEPS, "batch_texts": 9, "micro_tokens": 300, "evaluate_every": 6},
        "optim": {"encoder_lr": 1e-3, "head_lr": 1e-2},
        "checkpoint": {"every": 3},
        "logging": {"every": 1},
    }
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def alone(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Returns the losses of a run in one process, without Ray and DeepSpeed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = spanlake("train", str(recipe_file), "--directory", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "package")
    return losses(run)


def environment() -> dict[str, str]:
    python_path = os.pathsep.join(filter(None, [str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")]))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": python_path, "PATH": path, "OMP_NUM_THREADS": "1"}


def spanlake(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "spanlake.cli", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)


def torchrun(recipe: Path, run: Path, *changes: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "jobs/train.py"), str(recipe), "--directory", str(run), *changes]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)


def records(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run) if "loss" in record]


def reached(run: Path, step: int) -> bool:
    return any(record["step"] >= step for record in records(run))


def measured_loss(port: int) -> float:
    """Returns the loss in Ray's metrics at a port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.findall(
            r'^ray_spanlake_training_loss\{.*recipe="tiny".*\} (\S+)', answer.read().decode(), re.MULTILINE
        )
    return float(found[0]) if found else 0.0


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def train(recipe: Recipe, run: Path, resize_seconds: float = 60) -> None:
    """Trains as `spanlake train` does on a cluster."""
    directory = locate(str(run))
    claim(directory, recipe)
    launch(recipe, recipe_data(recipe, directory.inside("data")), directory, resize_seconds)


def training_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


# --- several workers learn the same as one ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_of_torchrun_learn_what_one_learns(
    stage: int, recipe_file: Path, alone: list[float], tmp_path: Path
) -> None:
    offload = "cpu" if stage == 2 else "none"
    done = torchrun(recipe_file, tmp_path / "run", f"parallel.zero_stage={stage}", f"parallel.offload={offload}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-3)
    assert open_package(str(tmp_path / "run" / "package")).name == "tiny"


def test_two_processes_train_an_adapter_as_one_does(recipe_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    changes = ["model.lora={rank: 4, train_head: true}", "checkpoint.every=6"]
    train_here(read_recipe(recipe_file, changes), locate(str(tmp_path / "alone")), _prepare)
    done = torchrun(recipe_file, tmp_path / "run", *changes, "parallel.zero_stage=3")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    assert open_package(str(tmp_path / "run" / "package")).name == "tiny"


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_killed_worker_changes_nothing(cluster: None, recipe_file: Path, alone: list[float], tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, ["parallel.workers=2", "parallel.zero_stage=1"])
    run, killed = tmp_path / "run", []

    def kill() -> None:
        wait_for(lambda: reached(run, 5))
        victim = random.choice(training_processes())
        killed.append(victim.pid)
        victim.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    train(recipe, run)
    killer.join()
    assert killed
    assert losses(run) == pytest.approx(alone, rel=1e-3)
    steps = [record["step"] for record in records(run) if "loss" in record]
    assert steps == list(range(1, STEPS + 1))
    assert Result.from_path(str(run / "ray")).metrics["loss"] == losses(run)[-1]
    assert load_package(run / "package").metadata["training"]["step"] in (6, STEPS)


def test_a_killed_driver_continues_when_started_again(recipe_file: Path, alone: list[float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(recipe_file), "parallel.workers=2", "parallel.zero_stage=3", "--directory", str(run)]
    command = [sys.executable, "-m", "spanlake.cli", *arguments]
    driver = subprocess.Popen(command, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: reached(run, 5) or driver.poll() is not None)
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    done = spanlake(*arguments)
    assert done.returncode == 0, done.stderr
    assert losses(run) == pytest.approx(alone, rel=1e-3)


@pytest.mark.timeout(900)
def test_a_run_shrinks_when_a_node_dies_and_grows_when_one_joins(recipe_file: Path, tmp_path: Path) -> None:
    """This needs universal checkpoints, because DeepSpeed's own fit only one number of workers."""
    run, small = tmp_path / "run", tmp_path / "small"
    changes = ["schedule.steps=100000", "schedule.evaluate_every=100000", "checkpoint.every=5"]
    elastic = [*changes, "parallel.workers=[1, 2]", "parallel.zero_stage=2"]
    # By default, a node that is dead counts as dead after half a minute.
    system = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "object_store_memory": STORE, "metrics_export_port": free_port(), "_system_config": system}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    second = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    script = "import sys; from pathlib import Path; from tests.cluster.test_training import *; "
    script += f"train(read_recipe(Path({str(recipe_file)!r}), {elastic!r}), Path({str(run)!r}), resize_seconds=2)"
    environ = environment() | {"RAY_ADDRESS": nodes.address}
    environ["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests/support'}"

    def workers_are(number: int) -> bool:
        assert driver.poll() is None, "training ended before its cluster had changed"
        return bool(records(run)) and records(run)[-1].get("workers") == number

    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environ) as driver:
        try:
            wait_for(lambda: workers_are(2))
            nodes.remove_node(second, allow_graceful=False)
            wait_for(lambda: workers_are(1))
            wait_for(lambda: measured_loss(head["metrics_export_port"]) > 0)
            nodes.add_node(num_cpus=1, object_store_memory=STORE)
            wait_for(lambda: workers_are(2))
            wait_for(lambda: [r["workers"] for r in records(run) if "loss" in r][-10:] == [2] * 10)
        finally:
            driver.kill()
            nodes.shutdown()
    found = losses(run)
    assert [record["step"] for record in records(run) if "loss" in record] == list(range(1, len(found) + 1))

    arguments = ["train", str(recipe_file), *changes, "--directory", str(small)]
    with subprocess.Popen([sys.executable, "-m", "spanlake.cli", *arguments], env=environment()) as driver:
        try:
            wait_for(lambda: len(losses(small)) >= len(found) or driver.poll() is not None)
        finally:
            driver.kill()
    assert losses(small)[: len(found)] == pytest.approx(found, rel=5e-3)


@pytest.mark.timeout(600)
def test_a_run_waits_for_a_cluster_that_grows(recipe_file: Path, tmp_path: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
    arguments = [
        "train",
        str(recipe_file),
        "parallel.workers=2",
        "schedule.steps=1",
        "--directory",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, "-m", "spanlake.cli", *arguments]
    environ = environment() | {"RAY_ADDRESS": nodes.address}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stderr is not None
            assert "2 workers with 1 CPU each, and the Ray cluster has 1 CPU; waiting" in driver.stderr.readline()
            nodes.add_node(num_cpus=1, object_store_memory=STORE)
            _, said = driver.communicate(timeout=240)
            assert driver.returncode == 0, said
        finally:
            driver.kill()
            nodes.shutdown()
    assert [record["workers"] for record in records(tmp_path / "run") if "loss" in record] == [2]


# --- refused calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [None, "auto"], ids=["of this machine's own", "that does not grow"])
def test_more_than_the_cluster_has_is_refused(
    address: str | None, cluster: None, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(launching, "_GROWTH_SECONDS", 0.5)
    recipe = read_recipe(recipe_file, ["parallel.workers=2", "parallel.gpus_per_worker=1"])
    with pytest.raises(UserError, match=r"2 workers with 1 GPU each, and the Ray cluster has 0 GPU"):
        train(recipe, tmp_path / "run")


def test_data_that_cannot_be_read_stop_every_worker(cluster: None, recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, ["parallel.workers=2"])
    directory = locate(str(tmp_path / "run"))
    claim(directory, recipe)
    data = recipe_data(recipe, directory.inside("data"))
    for file in (tmp_path / "run" / "data").rglob("*.parquet"):
        file.write_bytes(b"PAR1 no longer PAR1")
    with pytest.raises(UserError, match=r"\.parquet cannot be read"):
        launch(recipe, data, directory)


def test_a_loss_that_is_not_finite_stops_every_process(recipe_file: Path, tmp_path: Path) -> None:
    done = torchrun(recipe_file, tmp_path / "run", "optim.head_lr=1.0e+30", "schedule.warmup=0")
    assert done.returncode != 0
    said = re.findall(r"The loss of step \d+ is not finite .*sentences", done.stderr)
    assert len(said) == 2, done.stderr
