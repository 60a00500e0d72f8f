"""Checks that the core works where Ray is not installed: the import of the package, and all modules of the core."""

import subprocess
import sys

import pytest
from commands import ROOT

SOURCE_ROOT = ROOT / "platform"

# With None in sys.modules, `import ray` fails and find_spec("ray") returns None, as if Ray were not installed.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
"""

IMPORT_CORE = """
import importlib, pkgutil
layers = "errors", "text", "decoding", "modeling", "package", "inference", "data", "chat", "evaluation", "annotation"
for layer in layers:
    module = importlib.import_module("spanlake." + layer)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        importlib.import_module(inner.name)
assert not [name for name in sys.modules if name.startswith("ray.")]
"""

HELP = """
from spanlake import cli
try:
    cli.main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


def run_without_ray(program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WITHOUT_RAY + program]
    return subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    ["from spanlake import Entity, Extractor", IMPORT_CORE, HELP],
    ids=["front door", "core modules", "command line"],
)
def test_works_without_ray(program: str):
    done = run_without_ray(program)
    assert done.returncode == 0, done.stderr


def test_ray_is_missing_in_these_programs():
    assert "ModuleNotFoundError" in run_without_ray("import ray").stderr
