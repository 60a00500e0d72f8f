"""Chooses the device and the precision of a model."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from spanlake.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_TENSOR_CORES = (7, 0)  # compute capability of the first cards with them, which multiply float16 alone
_BFLOAT16 = (8, 0)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is the first CUDA device, or the CPU where there is no CUDA device.

    Raises `UserError` for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"The device {name!r} is unknown; give auto, cpu, cuda or cuda:0.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"The device {name!r} is not supported; give auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"The device {name!r} does not exist: there are {torch.cuda.device_count()} CUDA devices; use auto or cpu."
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the precision of a name; `auto` is what the hardware multiplies fast.

    That is bfloat16 on a CPU with AMX or AVX512-BF16 and on a GPU from compute capability 8.0 on, float16 on a GPU from
    7.0 on, such as T4 and V100, and float32 elsewhere. The choice depends on the hardware alone, not on a timing, so
    that all workers of one kind agree.

    Raises `UserError` for another name.
    """
    if name not in get_args(Precision):
        raise UserError(f"The precision {name!r} is unknown; give one of {', '.join(get_args(Precision))}.")
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return fastest_on_gpu(torch.cuda.get_device_capability(device))
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def fastest_on_gpu(capability: tuple[int, int]) -> torch.dtype:
    """Returns the precision that a card of this compute capability multiplies fastest."""
    if capability >= _BFLOAT16:
        return torch.bfloat16
    return torch.float16 if capability >= _TENSOR_CORES else torch.float32
