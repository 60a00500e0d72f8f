"""Checks that a command with the embedded model imports no library that it does not use."""

import subprocess
import sys

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
"""


def test_predict_imports_only_what_it_uses() -> None:
    done = subprocess.run([sys.executable, "-c", PREDICT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, imported = done.stdout.splitlines()
    assert "London" in done.stdout and len(found) == 3
    assert imported == "[]"
