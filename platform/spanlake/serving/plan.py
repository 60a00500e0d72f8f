"""How many replicas a load needs (`spanlake plan`), from the speed of one.

A replica is taken for a queue with random arrivals and random work (M/M/1): a request stays longer than t with the
probability exp(-(mu - lambda) t), where mu texts a second can be answered and lambda arrive. Batches make real replicas
better than that, so the answer is on the safe side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spanlake.errors import UserError
from spanlake.serving.scaling import BUSY

_DAY_SECONDS = 86_400
_LATE = math.log(100)  # one request in a hundred stays longer
_SECONDS = 5.0  # of measuring


@dataclass(frozen=True)
class Speed:
    """Of one replica."""

    texts_per_second: float
    seconds_alone: float  # of one text, if nothing else is in work


@dataclass(frozen=True)
class Capacity:
    texts_per_second: float  # of one replica
    seconds_alone: float
    peak_texts_per_second: float  # of all callers
    busy: float  # the share of its time that a replica may compute
    replicas: int  # at the peak
    replicas_on_average: int  # with autoscaling
    cost_per_month: float | None
    cost_per_million_texts: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(extract: Callable[[Sequence[str]], object], texts: Sequence[str]) -> Speed:
    """Measures `extract` on the texts for a few seconds: all at once, and one at a time."""
    extract(texts[:1])  # the first call prepares the model
    together = _repeat(lambda: extract(texts))
    alone = [_timed(lambda text=text: extract([text])) for text in texts[:20]]  # type: ignore[misc]
    return Speed(len(texts) / together, sorted(alone)[len(alone) // 2])


def _repeat(work: Callable[[], object]) -> float:
    """Returns the mean seconds of one round."""
    began, rounds = time.monotonic(), 0
    while not rounds or time.monotonic() - began < _SECONDS:
        work()
        rounds += 1
    return (time.monotonic() - began) / rounds


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def capacity(
    speed: Speed, texts_per_day: float, peak: float, p99_seconds: float, price_per_hour: float | None
) -> Capacity:
    """`peak` is the ratio of the busiest hour to the mean one. `price_per_hour` is that of one replica.

    Raises: UserError for a latency that one replica cannot keep even without load.
    """
    room = p99_seconds - speed.seconds_alone
    busy = min(BUSY, 1 - _LATE / (room * speed.texts_per_second)) if room > 0 else 0.0
    if busy <= 0:
        least = speed.seconds_alone + _LATE / speed.texts_per_second
        raise UserError(
            f"--p99 is {p99_seconds:g} s, and one replica needs {least:.3f} s even with hardly any load; allow more, "
            "or take a faster machine or a smaller model."
        )
    mean = texts_per_day / _DAY_SECONDS
    replicas, on_average = (max(1, math.ceil(rate / (speed.texts_per_second * busy))) for rate in (mean * peak, mean))
    cost = None if price_per_hour is None else on_average * price_per_hour * 24 * 30
    return Capacity(
        texts_per_second=speed.texts_per_second,
        seconds_alone=speed.seconds_alone,
        peak_texts_per_second=mean * peak,
        busy=busy,
        replicas=replicas,
        replicas_on_average=on_average,
        cost_per_month=cost,
        cost_per_million_texts=None if cost is None else cost / 30 / texts_per_day * 1e6,
    )


def in_words(found: Capacity) -> str:
    lines = [
        f"one replica: {found.texts_per_second:,.1f} texts/s; one text alone {1000 * found.seconds_alone:,.0f} ms",
        f"peak:        {found.peak_texts_per_second:,.1f} texts/s, with replicas at most {100 * found.busy:.0f} % busy",
        f"replicas:    {found.replicas:,} at the peak, {found.replicas_on_average:,} on average with autoscaling",
    ]
    if found.cost_per_month is not None and found.cost_per_million_texts is not None:
        per_million = f"{found.cost_per_million_texts:,.2f} for a million texts"
        lines.append(f"cost:        {found.cost_per_month:,.2f} in 30 days, {per_million}")
    return "\n".join(lines)
