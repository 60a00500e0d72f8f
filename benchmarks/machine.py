"""Describes the machine and the versions of a benchmark."""

import platform
import re
from importlib.metadata import version
from pathlib import Path


def machine(cores: int, *distributions: str) -> str:
    """Returns the processor, the number of cores in use, and the versions of Python, Spanlake and `distributions`."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("spanlake", *distributions))
    return f"{processor()}, {cores} cores; Python {platform.python_version()}, {versions}"


def processor() -> str:
    """Returns the processor's name, and its instructions that make bfloat16 fast."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor() or platform.machine()
    text = described.read_text(encoding="utf-8")
    name = re.search(r"model name\s*: (.*)", text)
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if re.search(rf"\b{flag}\b", text)]
    return " ".join([name.group(1) if name else platform.machine(), *(fast or ["no fast bfloat16"])])
