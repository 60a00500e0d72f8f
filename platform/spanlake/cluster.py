"""The Ray cluster that a command runs on.

It is the cluster that this process has already joined, else the one at RAY_ADDRESS (a submitted job has one), else a
new one on this machine.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import spanlake
from spanlake.errors import ShortfallError, no_cluster, one_line
from spanlake.ray_job import JOB_CONFIG

_PACKAGE = Path(spanlake.__path__[0]).resolve()


@contextmanager
def cluster(
    object_store_bytes: int, env_vars: Mapping[str, str] | None = None, *, log_to_driver: bool = False
) -> Iterator[None]:
    """Keeps a Ray cluster while the block runs. A new one gets `object_store_bytes`, and its processes get `env_vars`.

    Raises `UserError` where no cluster answers at RAY_ADDRESS, and `ShortfallError` where a new one cannot start.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address, runtime_env=_shipped_package(), **options)
        except Exception as error:  # Ray raises many kinds
            raise no_cluster(address, error) from error
    else:
        own = {name: value for name, value in {"PYTHONPATH": python_path(), **(env_vars or {})}.items() if value}
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else Ray's native code writes to our stderr
        with _native_stderr_closed():  # the native code writes there that its level has changed
            try:
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=object_store_bytes,
                    runtime_env={"env_vars": own} if own else {},
                    **options,
                )
            except Exception as error:  # Ray raises many kinds
                raise ShortfallError(f"Ray does not start on this machine ({one_line(error)}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def python_path() -> str:
    """Returns the PYTHONPATH with which other processes on this machine find this package."""
    own = [] if _is_installed() else [str(_PACKAGE.parent)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH", "")])])


def _shipped_package() -> dict[str, Any]:
    """Returns the runtime environment that sends this package to nodes where it may not be installed."""
    submitted = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
    if _is_installed() or "py_modules" in submitted:
        return {}
    return {"py_modules": [str(_PACKAGE)], "excludes": ["__pycache__"]}


def _is_installed() -> bool:
    return _PACKAGE.parent.name in ("site-packages", "dist-packages")


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
