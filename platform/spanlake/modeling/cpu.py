"""What makes a training step on a CPU cheap."""

from __future__ import annotations

import ctypes
import sys

from transformers import PreTrainedModel

from spanlake.modeling import attention
from spanlake.modeling.dropout import use_cheap_dropout
from spanlake.modeling.model import SpanModel

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = 2**31 - 1  # bytes


def prepare_cpu_training(model: SpanModel) -> None:
    """Gives the model the attention and the dropout of this package where they fit, and keeps freed memory.

    What the model computes stays the same, and in evaluation mode how it does too. The setting of the memory is the
    process's, so this is for a process that trains and does nothing else.
    """
    use_cheap_dropout(model)
    if isinstance(model.encoder, PreTrainedModel) and model.config.encoder["model_type"] in attention.PLAIN:
        model.encoder.set_attn_implementation(attention.NAME)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """A step allocates what the one before it freed; to hand that back to Linux and have it zeroed again, page by page,
    costs more than most element-wise operations."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc's
            libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
