"""Prepares a model for cheap training steps on a CPU."""

from __future__ import annotations

import ctypes
import sys

from spanlake.modeling.attention import PLAIN
from spanlake.modeling.bert import Bert
from spanlake.modeling.dropout import use_cheap_dropout
from spanlake.modeling.model import SpanModel

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = 2**31 - 1  # bytes


def prepare_cpu_training(model: SpanModel) -> None:
    """Gives the model the attention and the dropout of this package where they fit, and keeps freed memory.

    The model computes the same function. In evaluation mode it also computes it in the same way. The memory setting
    applies to the whole process, so call this only in a process that does nothing but train.
    """
    use_cheap_dropout(model)
    if not isinstance(model.encoder, Bert) and model.config.encoder["model_type"] in PLAIN:
        from spanlake.modeling.transformers_attention import use_cpu_attention

        use_cpu_attention(model.encoder)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Makes the C library keep freed memory instead of returning it to Linux.

    A step allocates the memory that the step before it freed. If the memory goes back to Linux, Linux zeroes it again
    page by page, which costs more than most element-wise operations.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # only glibc has it
            libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
