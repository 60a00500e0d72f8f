"""Chooses the device and the precision of a model."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from spanlake.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


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
    """Returns the precision of a name; `auto` is bfloat16 where the hardware multiplies it fast, float32 elsewhere.

    Tensor cores, AMX and AVX512-BF16 multiply bfloat16 fast. The choice depends on the hardware alone, not on a timing,
    so that all workers of one kind agree.

    Raises `UserError` for another name.
    """
    if name not in get_args(Precision):
        raise UserError(f"The precision {name!r} is unknown; give one of {', '.join(get_args(Precision))}.")
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
