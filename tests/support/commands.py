"""Runs commands as a user would."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def activated() -> dict[str, str]:
    """Returns the environment that `source .venv/bin/activate` makes."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command line in a shell, and returns its exit code and output."""
    return subprocess.run(
        command, shell=True, cwd=directory, env=activated(), capture_output=True, text=True, timeout=280
    )


def copy_parts(directory: Path) -> Path:
    """Copies the parts of the repository that commands use, which are small enough to send with a job."""
    for name in ("examples", "jobs", "platform"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return directory


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
