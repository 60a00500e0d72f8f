"""The images: the linter of Dockerfiles accepts them, and each step is a script that works on what it is given."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, activated

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def script(name: str, *arguments: object, pip: str = "") -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(DEPLOY / "image" / name), *map(str, arguments)]
    environment = {**activated(), "PIP_ARGUMENTS": pip}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def copied(stage: str) -> set[str]:
    """Returns the paths of the repository that a stage copies."""
    [body] = re.findall(rf"^FROM base AS {stage}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    lines = [line.split()[1:-1] for line in body.splitlines() if line.startswith("COPY ") and "--from" not in line]
    return {path for line in lines for path in line}


@pytest.mark.parametrize("name", ["Dockerfile", "model.Dockerfile"])
def test_the_linter_accepts_it(name: str) -> None:
    linter = shutil.which("hadolint", path=activated()["PATH"])
    if linter is None:  # there is none for this kind of machine
        pytest.skip("hadolint is not installed")
    linted = subprocess.run([linter, str(DEPLOY / name)], capture_output=True, text=True, timeout=60)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_step_is_one_of_the_scripts_and_every_file_is_there() -> None:
    steps = re.findall(r"^RUN (?:--mount=\S+ )?(.*)$", DOCKERFILE, re.MULTILINE)
    run = {re.fullmatch(r"bash /\S+/(\w+\.sh)( \S+)*", step)[1] for step in steps}  # type: ignore[index]
    assert run == {path.name for path in (DEPLOY / "image").iterdir()}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    kept = set(re.findall(r"^!(\S+)$", ignored, re.MULTILINE))
    for stage in ("cpu-dependencies", "cuda-dependencies", "package", "cpu", "cuda"):
        for path in copied(stage):
            assert (ROOT / path).exists()
            assert any(path == part or path.startswith(f"{part}/") for part in kept), path


def test_both_targets_differ_only_in_pytorch() -> None:
    stages = re.split(r"^FROM base AS ", DOCKERFILE, flags=re.MULTILINE)
    bodies = {stage.split("\n", 1)[0]: stage.split("\n", 1)[1].strip() for stage in stages[1:]}
    assert bodies["cuda-dependencies"].replace("cuda", "cpu") == bodies["cpu-dependencies"].replace("cuda", "cpu")
    of_gpus = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n"
    assert bodies["cuda"].replace(of_gpus, "").replace("cuda", "cpu") == bodies["cpu"].replace("cuda", "cpu")
    assert "USER 1000:100" in bodies["cpu"]


def test_the_dependencies_are_those_of_the_project_and_exist(tmp_path: Path) -> None:
    """All are installed here at the same versions, so that pip finds them without a network."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = script("dependencies.sh", "rocm", tmp_path)
    assert done.returncode == 2 and "it must be cpu or cuda" in done.stderr
    listed = script("dependencies.sh", "cuda", tmp_path, pip="--dry-run --no-deps --no-index")
    assert listed.returncode == 0, listed.stderr
    assert not re.search("would install", listed.stdout, re.IGNORECASE)
    for name in ("torch", "ray", "deepspeed", "grpcio", "deltalake"):
        assert re.search(rf"already satisfied: {name}\b", listed.stdout), name


@pytest.mark.slow
def test_the_package_is_built_from_what_the_image_copies_and_installs(tmp_path: Path) -> None:
    for path in copied("package") - {"deploy/image/package.sh"}:
        source = ROOT / path
        if source.is_dir():
            shutil.copytree(source, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tmp_path)
    built = script("package.sh", tmp_path, tmp_path / "wheels", pip="--no-build-isolation --no-index")
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "spanlake/cli.py" in names and "spanlake/models/mini/model.safetensors" in names
    installed = script("finish.sh", tmp_path / "wheels", pip=f"--target {tmp_path / 'site'} --no-compile")
    assert installed.returncode == 0, installed.stderr
    assert {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.py")} == {
        name for name in names if name.endswith(".py")
    }


@pytest.mark.slow
def test_the_check_of_an_image_passes_here() -> None:
    done = script("check.sh")
    assert done.returncode == 0, done.stdout + done.stderr
