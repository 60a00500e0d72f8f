"""Checks that no module of the repository hides a standard module or Ray.

The directory `platform/` has the name of a standard module. That is safe only while a program with the repository, or a
part of it, first on sys.path still imports the standard modules and Ray.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

# The possible first entries of sys.path: the root (Ray's working directory), the source root, a script's directory.
IMPORT_ROOTS = (ROOT, ROOT / "platform", ROOT / "jobs", ROOT / "serve", ROOT / "tests")
TAKEN = sys.stdlib_module_names | {"ray"}


def importable_names(folder: Path) -> set[str]:
    """Returns the modules and regular packages in a folder. A folder without __init__.py never hides a real module."""
    modules = {file.stem for file in folder.glob("*.py")}
    return modules | {init.parent.name for init in folder.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", IMPORT_ROOTS, ids=lambda folder: folder.name)
def test_nothing_hides_a_standard_module(folder: Path):
    hiding = sorted(importable_names(folder) & TAKEN)
    assert not hiding, f"{folder} holds {hiding}, which would be imported instead of the real module: rename or remove."


def test_the_check_sees_what_hides_a_module(tmp_path: Path):
    (tmp_path / "platform").mkdir()
    assert importable_names(tmp_path) & TAKEN == set()
    (tmp_path / "platform" / "__init__.py").touch()
    (tmp_path / "queue.py").touch()
    assert importable_names(tmp_path) & TAKEN == {"platform", "queue"}


@pytest.mark.parametrize("folder", [ROOT, ROOT / "platform"], ids=lambda folder: folder.name)
def test_python_started_here_gets_the_standard_modules(folder: Path):
    program = "import uuid, platform; print(platform.system())"  # uuid reads the standard platform module
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
