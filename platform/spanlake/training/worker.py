"""One process of a run, and what it exchanges with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Worker:
    """If there are several processes, `torch.distributed` is set up."""

    rank: int
    size: int
    local_rank: int  # among the processes of its machine
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.size > 1:
            dist.barrier()

    def total(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all processes."""
        sums = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            sums = sums.to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values
