"""How many replicas a load needs. Ray Serve calls this policy, which does not import Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

BUSY = 0.8  # the share of its time that a replica computes before another one is wanted


class Load(Protocol):
    """The part of Ray Serve's AutoscalingContext that is read here."""

    current_num_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """For each metric and each replica that has reported: the mean over the look-back period."""


class QueuePolicy:
    """Wants so many replicas that each has less than `queue_seconds` of queued work and a busy share below `busy`.

    Queued seconds are queued sub-words divided by the sub-words per second that a replica is measured to do. So long
    texts and slow devices count for what they cost; a number of requests does not show that. The busy share keeps
    replicas that are just enough and so have no queue.
    """

    def __init__(self, queue_seconds: float = 1.0, busy: float = BUSY) -> None:
        self._queue_seconds = queue_seconds
        self._busy = busy

    def __call__(self, load: Load) -> tuple[int, dict[str, Any]]:
        """Returns the wanted number, to which Ray Serve applies its delays and bounds, and a state that is not used."""
        metrics = load.aggregated_metrics or {}
        queued = metrics.get("queue_seconds", {}).values()
        if not queued:
            return load.current_num_replicas, {}
        by_queue = sum(queued) / self._queue_seconds
        by_share = sum(metrics.get("busy", {}).values()) / self._busy
        return max(1, math.ceil(round(max(by_queue, by_share), 3))), {}
