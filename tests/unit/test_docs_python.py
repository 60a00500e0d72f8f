"""Each program of docs/python.md runs as it stands there, where its library is installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import ROOT

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
# What `make adapters` runs instead, in tests/unit/adapters: they fetch a model, or take a minute to start.
ELSEWHERE = ("presidio_analyzer", "pyspark")


def library(program: str) -> str:
    """Returns the first module that a program imports."""
    found = re.search(r"^(?:from|import) (\w+)", program, re.MULTILINE)
    assert found
    return found[1]


def test_the_programs_are_found():
    assert len(PROGRAMS) == 8


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=library)
def test_a_program_runs(program: str, tmp_path: Path):
    name = library(program)
    if name in ELSEWHERE:
        pytest.skip(f"{name}: see tests/unit/adapters")
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'spanlake[adapters]'")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    ran = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert "Ada Lovelace" in ran.stdout or "Alain Farley" in ran.stdout
