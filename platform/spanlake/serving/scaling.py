"""How many replicas a load needs. Ray Serve asks this policy; it knows nothing of Ray itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol


class Load(Protocol):
    """The part of Ray Serve's AutoscalingContext that is read here."""

    current_num_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """Of each metric, its mean over the look-back period for every replica that has reported."""


class QueuePolicy:
    """As many replicas as bring the queued work of each below `queue_seconds` and its busy share below `busy`.

    Queued work is in sub-words, divided by what a replica is measured to do in a second: long texts and slow devices
    count for what they cost, which a number of requests would not tell. The busy share keeps replicas that have no
    queue because they are just enough.
    """

    def __init__(self, queue_seconds: float = 1.0, busy: float = 0.8) -> None:
        self._queue_seconds = queue_seconds
        self._busy = busy

    def __call__(self, load: Load) -> tuple[int, dict[str, Any]]:
        """The number wanted; Ray Serve applies its delays and bounds. The second value, a state, is not used."""
        metrics = load.aggregated_metrics or {}
        queued = metrics.get("queue_seconds", {}).values()
        if not queued:
            return load.current_num_replicas, {}
        by_queue = sum(queued) / self._queue_seconds
        by_share = sum(metrics.get("busy", {}).values()) / self._busy
        return max(1, math.ceil(round(max(by_queue, by_share), 3))), {}
