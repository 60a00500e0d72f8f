"""Copies from the host to a device for which the host does not wait."""

from __future__ import annotations

import torch


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor in memory from which `device` can copy by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a copy on `device` of a tensor on the host."""
    return pinned(tensor, device).to(device, non_blocking=True)
