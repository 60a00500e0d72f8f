"""What Prometheus is told: how much is asked, how long it takes, how full the passes are.

Each replica counts for itself. Ray's agent on each node exports what the replicas there count, under names that begin
with `ray_`, and `collect` gathers all nodes into one page, so that it does not matter which replica shows it.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spanlake.serving.middleware import RequestRecord
from spanlake.serving.runner import PassReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_PREFIX = b"ray_spanlake_"
_COLLECT_SECONDS = 2.0  # a node that is slower is left out


class Metrics:
    """Those of one replica. Its methods may be called from any thread."""

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
            # Only a model that answered has a name that is surely one of ours: else callers could make up series.
            if count and record.status == 200:
                counter.inc(count, tags={"model": record.model or ""})

    def observe_pass(self, report: PassReport) -> None:
        self._pass_seconds.observe(report.seconds)
        self._pass_rows.observe(report.rows)
        self._tokens.inc(report.tokens)
        self._padded_tokens.inc(report.padded_tokens)

    def observe_state(self, queued_tokens: int, queue_seconds: float, batch_tokens: int) -> None:
        """Called every few seconds once the model is loaded, as a gauge that is set once is soon forgotten."""
        self._ready.set(1)
        self._budget.set(batch_tokens)
        self._queue_tokens.set(queued_tokens)
        self._queue_seconds.set(queue_seconds)


def collect(agents: Iterable[str]) -> tuple[bytes, str]:
    """The metrics of Spanlake that these agents export, each given as host:port, and their content type. An agent that
    does not answer is named in a comment.
    """
    with ThreadPoolExecutor(16) as pool:
        pages = pool.map(_read, dict.fromkeys(agents))
    seen: set[bytes] = set()
    lines = []
    for line in (line for page in pages for line in page):
        if line.startswith(b"# ") and line in seen:
            continue  # a family that several nodes have is described once
        seen.add(line)
        lines.append(line)
    return b"".join(line + b"\n" for line in _by_family(lines)), CONTENT_TYPE


def _read(agent: str) -> list[bytes]:
    try:
        with urllib.request.urlopen(f"http://{agent}/metrics", timeout=_COLLECT_SECONDS) as response:
            content: bytes = response.read()
    except OSError as error:
        return [f"# {agent} does not answer ({type(error).__name__})".encode()]
    return [
        line
        for line in content.split(b"\n")
        if line.removeprefix(b"# HELP ").removeprefix(b"# TYPE ").startswith(_PREFIX)
    ]


def _by_family(lines: list[bytes]) -> list[bytes]:
    """The lines of each family together, as the format asks for, in the order in which families appear first."""
    families: dict[bytes, list[bytes]] = {}
    for line in lines:
        words = line.split(b" ")
        name = words[2] if line.startswith((b"# HELP ", b"# TYPE ")) else words[0].split(b"{")[0]
        for suffix in (b"_bucket", b"_sum", b"_count"):
            if name.removesuffix(suffix) in families:
                name = name.removesuffix(suffix)
        families.setdefault(name, []).append(line)
    return [line for family in families.values() for line in family]
