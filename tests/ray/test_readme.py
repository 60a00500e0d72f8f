"""Every command and every snippet of the README, run as a newcomer would, in the order in which they stand."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What a test cannot run: itself, and the shell's own environment.
ELSEWHERE = {"make test", "source .venv/bin/activate"}
OF_THEIR_OWN = ("make", "ray job", "spanlake serve", "curl")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line and line not in ELSEWHERE]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one command after another is run."""
    return copy_parts(tmp_path_factory.mktemp("checkout"))


def copy_parts(directory: Path) -> Path:
    """What a command finds around it: the parts of the repository that commands name."""
    for name in ("examples", "jobs", "platform"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    benchmark = directory / "BENCHMARK"
    benchmark.mkdir()
    (benchmark / "labels.json").write_text('["person", "organization"]')
    entity = {"name": "Alain Farley", "type": "person", "pos": [0, 12]}
    sentence = {"sentence": "Alain Farley works at McGill University", "entities": [entity]}
    (benchmark / "test.json").write_text(json.dumps([sentence]))
    return directory


def environment() -> dict[str, str]:
    """As `source .venv/bin/activate` leaves it."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=directory, env=environment(), capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith((*OF_THEIR_OWN,))])
def test_a_command_of_the_readme(command: str, checkout: Path) -> None:
    done = run(command, checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo() -> None:
    done = run("make demo", ROOT)
    assert done.returncode == 0, done.stderr
    assert '"complete": true' in done.stdout and "what to try next" in done.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head that takes jobs. No port of it is one that another Ray here may hold."""
    address = f"http://127.0.0.1:{free_port()}"
    command = (
        f"exec ray start --head --block --port {free_port()} --dashboard-port {address.rpartition(':')[2]} "
        f"--dashboard-agent-listen-port {free_port()} --dashboard-agent-grpc-port {free_port()} "
        f"--metrics-export-port {free_port()} --ray-client-server-port {free_port()} "
        "--num-cpus 2 --object-store-memory 200000000 --disable-usage-stats"
    )
    process = subprocess.Popen(command, shell=True, cwd=tmp_path, env=environment())
    try:
        deadline = time.monotonic() + 200
        # The dashboard answers before the node's agent, which starts jobs, has joined it.
        while (trial := run(f"ray job submit --address {address} -- true", tmp_path)).returncode:
            assert process.poll() is None and time.monotonic() < deadline, trial.stdout + trial.stderr
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def test_jobs_are_submitted_to_a_running_cluster(dashboard: str, tmp_path: Path) -> None:
    checkout = copy_parts(tmp_path / "checkout")  # the working directory is sent to the cluster, so it is kept small
    for command in [c for c in commands() if c.startswith("ray job")]:
        command = command.replace("http://127.0.0.1:8265", dashboard).replace("/tmp/", f"{tmp_path}/")
        done = run(command, checkout)
        assert done.returncode == 0, done.stdout + done.stderr
    audit = run(f"spanlake audit {tmp_path / 'found'}", checkout)
    assert audit.returncode == 0 and json.loads(audit.stdout)["entities"] > 0
    assert run(f"spanlake package verify {tmp_path / 'second-run/package'}", checkout).returncode == 0


def test_the_server_and_its_client(checkout: Path) -> None:
    (server,) = [c for c in commands() if c.startswith("spanlake serve")]
    (question,) = [c for c in commands() if c.startswith("curl")]
    (snippet,) = [snippet for snippet in blocks("python") if "Client" in snippet]
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        "exec " + server.replace("8000", address.rpartition(":")[2]), shell=True, cwd=checkout, env=environment()
    )
    try:
        deadline = time.monotonic() + 200
        while run(f"curl -sf http://{address}/ready", checkout).returncode:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        for command in (question, f"{sys.executable} -c {shlex.quote(snippet)}"):
            done = run(command.replace("127.0.0.1:8000", address), checkout)
            assert done.returncode == 0, done.stderr
            assert "Alain Farley" in done.stdout and "McGill University" in done.stdout
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_the_python_snippets(checkout: Path) -> None:
    snippets = [snippet for snippet in blocks("python") if "Client" not in snippet]
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=checkout, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        assert "Alain Farley" in done.stdout


def test_the_figure_of_the_paper() -> None:
    """Figure 1 of Zaratiana et al. 2023, with the embedded model and the default threshold."""
    done = run('spanlake predict "Alain Farley works at McGill University" --labels person,organization --json', ROOT)
    (entities,) = json.loads(done.stdout)
    found = [(entity["text"], entity["label"]) for entity in entities]
    assert found == [("Alain Farley", "person"), ("McGill University", "organization")]
