"""Runs the benchmark of the GPU on a machine without one, where it measures tiny shapes and says so."""

import subprocess
import sys

import pytest
from commands import ROOT


@pytest.mark.slow
def test_it_runs_on_a_cpu_and_says_that_it_measured_no_card():
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--no-peer"]
    size = ["--texts", "2", "--rounds", "1", "--labels", "3", "--shapes", "tiny-bert"]
    done = subprocess.run([*command, *size], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "NO CARD WAS MEASURED" in done.stdout
    assert "mini in float32: 0 of " in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("tiny-bert")] == [
        ["tiny-bert", kind, "3"] for kind in ("short", "medium", "long")
    ]
    assert "the last case by operation" in done.stdout
