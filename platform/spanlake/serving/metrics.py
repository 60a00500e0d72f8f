"""Metrics for Prometheus: how much is asked, how long it takes, how full the passes are.

Each replica counts for itself. Ray's agent on each node exports what the replicas there count, under names that begin
with `ray_`, and `collect` gathers all nodes into one page, so that it does not matter which replica shows it.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from spanlake.serving.middleware import RequestRecord
from spanlake.serving.runner import PassReport

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_PREFIX = "ray_spanlake_"
_COLLECT_SECONDS = 2.0  # a node that is slower is left out


class Metrics:
    """The metrics of one replica. Any thread may call its methods."""

    def __init__(self, kinds: Any) -> None:
        """`kinds`: a module with the classes Counter, Gauge and Histogram, as `ray.serve.metrics`."""
        model = ("model",)
        self._requests = kinds.Counter("spanlake_requests_total", "Requests answered.", ("route", "status"))
        self._request_seconds = kinds.Histogram(
            "spanlake_request_seconds", "From a request's first byte to its answer's last.", _SECONDS, ("route",)
        )
        self._errors = kinds.Counter("spanlake_errors_total", "Requests answered with an error, by type.", ("type",))
        self._texts = kinds.Counter("spanlake_texts_total", "Texts asked about.", model)
        self._characters = kinds.Counter("spanlake_characters_total", "Code points of these texts.", model)
        self._entities = kinds.Counter("spanlake_entities_total", "Entities found.", model)
        self._pass_seconds = kinds.Histogram("spanlake_pass_seconds", "Of one forward pass.", _SECONDS)
        self._pass_rows = kinds.Histogram("spanlake_pass_rows", "Windows of texts in one forward pass.", _ROWS)
        self._tokens = kinds.Counter("spanlake_tokens_total", "Sub-words read, prompts among them.")
        self._padded_tokens = kinds.Counter("spanlake_padded_tokens_total", "Sub-words computed, padding among them.")
        self._queue_tokens = kinds.Gauge("spanlake_queue_tokens", "Sub-words that wait or are in work.")
        self._queue_seconds = kinds.Gauge("spanlake_queue_seconds", "Until these are answered.")
        self._budget = kinds.Gauge("spanlake_batch_budget_tokens", "Padded sub-words that one pass may hold.")
        self._ready = kinds.Gauge("spanlake_replica_ready", "1 for each replica whose model is loaded.")

    def observe_request(self, record: RequestRecord) -> None:
        self._requests.inc(tags={"route": record.route, "status": str(record.status)})
        self._request_seconds.observe(record.seconds, tags={"route": record.route})
        if record.error_type:
            self._errors.inc(tags={"type": record.error_type})
        for counter, count in (
            (self._texts, record.texts),
            (self._characters, record.characters),
            (self._entities, record.entities),
        ):
            # Count only under names of models that answered. Otherwise callers could make up series.
            if count and record.status == 200:
                counter.inc(count, tags={"model": record.model or ""})

    def observe_pass(self, report: PassReport) -> None:
        self._pass_seconds.observe(report.seconds)
        self._pass_rows.observe(report.rows)
        self._tokens.inc(report.tokens)
        self._padded_tokens.inc(report.padded_tokens)

    def observe_state(self, queued_tokens: int, queue_seconds: float, batch_tokens: int) -> None:
        """Sets the gauges. Ray forgets a gauge that is set only once, so this runs every few seconds."""
        self._ready.set(1)
        self._budget.set(batch_tokens)
        self._queue_tokens.set(queued_tokens)
        self._queue_seconds.set(queue_seconds)


def collect(agents: Iterable[str]) -> tuple[bytes, str]:
    """Returns the metrics of Spanlake that these agents export, and their content type.

    An agent is host:port. One that does not answer is named in a comment.
    """
    families: dict[str, Metric] = {}
    lost = []
    with ThreadPoolExecutor(16) as pool:
        for agent, page in pool.map(_read, dict.fromkeys(agents)):
            if isinstance(page, Exception):
                lost.append(f"# {agent} does not answer ({type(page).__name__})\n".encode())
                continue
            for family in page:
                if family.name in families:
                    families[family.name].samples += family.samples
                else:
                    families[family.name] = family
    return b"".join([*lost, generate_latest(_Page(families.values()))]), CONTENT_TYPE_PLAIN_0_0_4


class _Page(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _read(agent: str) -> tuple[str, list[Metric] | Exception]:
    """Returns the agent, and its metrics or the error."""
    try:
        with urllib.request.urlopen(f"http://{agent}/metrics", timeout=_COLLECT_SECONDS) as response:
            families = text_string_to_metric_families(response.read().decode())
        return agent, [family for family in families if family.name.startswith(_PREFIX)]
    except (OSError, ValueError) as error:
        return agent, error
