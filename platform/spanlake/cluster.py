"""The Ray cluster that a command runs on: this process's, that of RAY_ADDRESS (a submitted job has one), or its own."""

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

_PACKAGE = Path(spanlake.__path__[0]).resolve()


@contextmanager
def cluster(
    object_store_bytes: int, env_vars: Mapping[str, str] | None = None, *, log_to_driver: bool = False
) -> Iterator[None]:
    """A Ray cluster while the block lasts; `object_store_bytes` and the processes' `env_vars` are those of a new one.

    Raises: UserError where no cluster answers at RAY_ADDRESS; ShortfallError where a new one cannot start.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address, runtime_env=_shipped_package(), **options)
        except Exception as error:  # of many kinds
            raise no_cluster(address, error) from error
    else:
        own = {name: value for name, value in {"PYTHONPATH": python_path(), **(env_vars or {})}.items() if value}
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its native code would write to our stderr,
        with _native_stderr_closed():  # and says there that it now does not
            try:
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=object_store_bytes,
                    runtime_env={"env_vars": own} if own else {},
                    **options,
                )
            except Exception as error:  # of many kinds
                raise ShortfallError(f"Ray does not start on this machine ({one_line(error)}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def python_path() -> str:
    """Where processes on this machine find this package too."""
    own = [] if _is_installed() else [str(_PACKAGE.parent)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH", "")])])


def _shipped_package() -> dict[str, Any]:
    """The runtime environment that brings this package to nodes which cannot be expected to have it installed."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
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
