"""Runs the benchmark of the GPU on a machine without one, where it measures tiny shapes and says so, and gives
benchmarks and the trip to a GPU wrong arguments."""

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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gpu.py", "--rounds", "0"], "argument --rounds: '0' is not a whole number from 1 up"),
        (["gpu.py", "--labels", "5,a"], "argument --labels: 'a' is not a whole number from 1 up"),
        (["gpu.py", "--device", "tpu0"], "gpu.py: The device 'tpu0' is unknown; give auto, cpu, cuda or cuda:0."),
        (["serving.py", "--sides", "x"], "argument --sides: 'x' is no side; give some of spanlake, grpc, "),
        (["serving.py", "--rates", "5,0"], "argument --rates: '0' is not a number above 0"),
    ],
)
def test_wrong_arguments_get_one_sentence(given: list[str], said: str):
    done = subprocess.run([sys.executable, *given], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "tools/gpu_trip.sh pack"),
        (["pack"], "tools/gpu_trip.sh pack"),
        (["run", "0"], "MINUTES is '0'; give a whole number from 1 to 9999"),
        (["run", "ten"], "MINUTES is 'ten'"),
        (["run", "5", "gpu"], "the device is 'gpu'"),
    ],
)
def test_wrong_arguments_of_the_trip_are_refused(given: list[str], said: str):
    done = subprocess.run(["bash", "tools/gpu_trip.sh", *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "==" not in done.stdout
