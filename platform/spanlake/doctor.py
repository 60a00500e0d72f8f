"""Checks what this machine and its Ray cluster can do for Spanlake, and what is missing.

Each check has a verdict: `ok`; `missing`, where a job is not possible (the check says which job, and what to install);
or `broken`, where something that is installed does not work.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from spanlake.errors import SpanlakeError, one_line

Verdict = Literal["ok", "missing", "broken"]

# A library, the extra of the package that installs it, and the job that needs it.
_LIBRARIES = (
    ("ray", "ray", "`spanlake extract`"),
    ("deepspeed", "train", "training on several workers"),
    ("fastapi", "serve", "`spanlake serve`"),
    ("pyiceberg", "tables", "reading and writing Iceberg tables"),
    ("deltalake", "tables", "reading and writing Delta tables"),
    ("re2", "rules", "finding entities by rules"),
    ("cryptography", "redact", "redaction that can be undone"),
    ("faker", "redact", "redaction with made-up values"),
)
_SMALL_SHARED_MEMORY = 300 * 2**20  # bytes; the size of an extraction's Ray object store
_TOKEN = "set RAY_AUTH_MODE=token if the cluster asks for a token"
_RAY_SECONDS = 30.0
_ASK_RAY = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(ray.cluster_resources()))
"""


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    says: str


def examine() -> Iterator[Check]:
    """Yields every check, cheap ones first. Writes nothing and starts no cluster."""
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield _memory()
    yield _shared_memory()
    yield from _libraries()
    yield _compiler()
    yield from _device()
    yield _model()
    yield _cluster()


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check("memory", "ok", f"{total / 2**30:.1f} GiB, {os.cpu_count()} CPUs")


def _shared_memory() -> Check:
    directory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    says = f"{free / 2**30:.1f} GiB free in {directory}"
    if free < _SMALL_SHARED_MEMORY:
        return Check("shared memory", "missing", f"{says}: Ray's object store needs 0.3 GiB, else it uses the disk")
    return Check("shared memory", "ok", says)


def _libraries() -> Iterator[Check]:
    for library, extra, use in _LIBRARIES:
        try:
            yield Check(library, "ok", version(library))
        except PackageNotFoundError:
            says = f"not installed, so {use} is not possible: pip install 'spanlake[{extra}]'"
            yield Check(library, "missing", says)


def _compiler() -> Check:
    found = shutil.which("g++") or shutil.which("c++")
    if found:
        return Check("C++ compiler", "ok", found)
    return Check("C++ compiler", "missing", "none found: DeepSpeed builds its operators with one, so install g++")


def _device() -> Iterator[Check]:
    import torch

    from spanlake.inference.hardware import choose_device, choose_precision

    device = choose_device("auto")
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"GPU {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield Check("GPU", "missing", "no GPU found: models run on the CPU, correctly but slowly")
    yield Check("precision", "ok", f"{precision} is the default, because this {device.type} computes fast in it")


def _model() -> Check:
    from spanlake.inference.extractor import Extractor

    text = "Alain Farley works at McGill University"
    try:
        extractor = Extractor.load("mini")
        [entities] = extractor.extract([text], ["person"])
    except SpanlakeError as error:
        return Check("embedded model", "broken", one_line(error))
    if [entity.text for entity in entities] != ["Alain Farley"]:
        found = [entity.text for entity in entities]
        return Check("embedded model", "broken", f"it finds {found} as person in {text!r}: install Spanlake again")
    return Check("embedded model", "ok", f"{extractor.package.name}, fingerprint {extractor.package.fingerprint[:12]}")


def _cluster() -> Check:
    """Checks the CPUs and GPUs of the cluster at RAY_ADDRESS.

    A separate process asks Ray, because a process can be ended where Ray does not return.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("Ray cluster", "ok", "RAY_ADDRESS is not set: each job starts its own Ray on this machine")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_RAY, address], capture_output=True, text=True, timeout=_RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        silence = f"no cluster answers at RAY_ADDRESS={address} within {_RAY_SECONDS:.0f} s"
        return Check("Ray cluster", "broken", f"{silence}; {_TOKEN}")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["Ray gives no reason"])[-1]
        return Check("Ray cluster", "broken", f"no cluster answers at RAY_ADDRESS={address} ({said}); {_TOKEN}")
    resources = json.loads(done.stdout.splitlines()[-1])
    found = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources]
    return Check("Ray cluster", "ok", f"{address}: {', '.join(found) or 'no CPU and no GPU'}")
