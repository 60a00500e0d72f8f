"""Runs every command and every snippet of the README as a newcomer does, in their order."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, activated, copy_parts, free_port, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
# A test cannot run itself, or change the environment of the shell.
ELSEWHERE = {"make test", "source .venv/bin/activate"}
OF_THEIR_OWN = ("make", "ray job", "spanlake serve", "curl")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line and line not in ELSEWHERE]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the directory in which all commands run."""
    directory = copy_parts(tmp_path_factory.mktemp("checkout"))
    benchmark = directory / "BENCHMARK" / "CrossNER_AI"
    benchmark.mkdir(parents=True)
    (benchmark / "labels.json").write_text('["person", "organization"]')
    entity = {"name": "Alain Farley", "type": "person", "pos": [0, 12]}
    sentence = {"sentence": "Alain Farley works at McGill University", "entities": [entity]}
    (benchmark / "test.json").write_text(json.dumps([sentence]))
    return directory


@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith((*OF_THEIR_OWN,))])
def test_a_command_of_the_readme(command: str, checkout: Path) -> None:
    done = run(command, checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo() -> None:
    done = run("make demo", ROOT)
    assert done.returncode == 0, done.stderr
    assert '"complete": true' in done.stdout and "what to try next" in done.stdout


def test_jobs_are_submitted_to_a_running_cluster(head: str, tmp_path: Path) -> None:
    checkout = copy_parts(tmp_path / "checkout")  # a small directory, because Ray sends it to the cluster
    for command in [c for c in commands() if c.startswith("ray job")]:
        command = command.replace("http://127.0.0.1:8265", head).replace("/tmp/", f"{tmp_path}/")
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
        "exec " + server.replace("8000", address.rpartition(":")[2]), shell=True, cwd=checkout, env=activated()
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
    """The embedded model gives Figure 1 of Zaratiana et al. 2023 with the default threshold."""
    done = run('spanlake predict "Alain Farley works at McGill University" --labels person,organization --json', ROOT)
    (entities,) = json.loads(done.stdout)
    found = [(entity["text"], entity["label"]) for entity in entities]
    assert found == [("Alain Farley", "person"), ("McGill University", "organization")]
