"""Checks that a command with the embedded model, and workers beside Ray, import no library that they do not use."""

import subprocess
import sys

import pytest

# Each takes longer to import than the embedded model takes to load.
HEAVY = [
    "accelerate",
    "datasets",
    "deepspeed",
    "fastapi",
    "huggingface_hub",
    "pandas",
    "ray",
    "sklearn",
    "torch._dynamo",
    "transformers",
]

PREDICT = f"""
import sys
from spanlake.cli import main
assert main(["predict", "Ada Lovelace lived in London.", "--labels", "person,city"]) == 0
print([name for name in {HEAVY} if name in sys.modules])
import spanlake.extraction.run.unit, spanlake.serving.runner, spanlake.training.trainer  # what workers run
print([name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.slow
def test_predict_and_workers_import_only_what_they_use() -> None:
    done = subprocess.run([sys.executable, "-c", PREDICT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, by_predict, by_workers = done.stdout.splitlines()
    assert "London" in done.stdout and len(found) == 3
    assert by_predict == "[]"
    assert by_workers == "[]"
