"""Chooses between a kernel of ours and the PyTorch code that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

from spanlake.errors import described

_P = ParamSpec("_P")
_R = TypeVar("_R")
_log = logging.getLogger(__name__)


class WithFallback(Generic[_P, _R]):
    """Calls a kernel, or, once the kernel has failed, the PyTorch code. It says so once."""

    def __init__(self, name: str, load: Callable[[], Callable[_P, _R]], plain: Callable[_P, _R]) -> None:
        """`load` imports the kernel; it may fail as the kernel may."""
        self._name, self._load, self._plain = name, load, plain
        self._chosen: Callable[_P, _R] | None = None

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if self._chosen is self._plain:
            return self._plain(*args, **kwargs)
        try:
            if self._chosen is None:
                self._chosen = self._load()
            return self._chosen(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler, of the driver, or of the import
            self._chosen = self._plain
            _log.warning("%s", _said(self._name, error))
            return self._plain(*args, **kwargs)


def _said(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "triton":
        return f"{name} needs Triton, so slower code of PyTorch takes its place: pip install triton."
    return f"{name} does not run on this card ({described(error)}), so slower code of PyTorch takes its place."
