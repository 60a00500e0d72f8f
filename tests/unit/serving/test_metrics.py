"""Metrics, their dashboard, and traces, without Ray: what is counted, and that what is shown exists."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from metric_kinds import Kinds, shown_metrics

from spanlake.errors import UserError
from spanlake.serving import tracing
from spanlake.serving.metrics import Metrics, collect
from spanlake.serving.middleware import RequestRecord
from spanlake.serving.runner import PassReport

DASHBOARD = ROOT / "deploy" / "grafana" / "serving.json"


def test_requests_passes_and_the_queue_are_counted():
    kinds = Kinds()
    metrics = Metrics(kinds)
    record = RequestRecord("1", "POST", "/v1/extract", 200, 0.25, None, None, "mini", 2, 80, 3, 5)
    metrics.observe_request(record)
    metrics.observe_request(
        RequestRecord("2", "POST", "/v1/extract", 404, 0.01, "unknown_model", model="made up", texts=1)
    )
    metrics.observe_pass(PassReport(rows=4, tokens=70, padded_tokens=100, seconds=0.5))
    metrics.observe_state(queued_tokens=1234, queue_seconds=1.5, batch_tokens=4096)
    assert kinds.values == {
        ("spanlake_requests_total", "/v1/extract", "200"): [1],
        ("spanlake_requests_total", "/v1/extract", "404"): [1],
        ("spanlake_request_seconds", "/v1/extract"): [0.25, 0.01],
        ("spanlake_errors_total", "unknown_model"): [1],
        ("spanlake_texts_total", "mini"): [2],  # a name that a caller made up is no series
        ("spanlake_characters_total", "mini"): [80],
        ("spanlake_entities_total", "mini"): [5],
        ("spanlake_pass_seconds",): [0.5],
        ("spanlake_pass_rows",): [4],
        ("spanlake_tokens_total",): [70],
        ("spanlake_padded_tokens_total",): [100],
        ("spanlake_queue_tokens",): [1234],
        ("spanlake_queue_seconds",): [1.5],
        ("spanlake_batch_budget_tokens",): [4096],
        ("spanlake_replica_ready",): [1],
    }


def test_every_metric_of_the_dashboard_is_one_of_ours_and_every_one_of_ours_is_shown():
    kinds = Kinds()
    Metrics(kinds)
    queries, names = shown_metrics(DASHBOARD)
    assert names == set(kinds.tags)
    for query in queries:  # a label that no metric has would show nothing
        labels = {label for group in re.findall(r"by \(([^)]*)\)|\{(\w+)=~", query) for label in group if label}
        assert labels <= {"le", "replica", *(tag for tags in kinds.tags.values() for tag in tags)}
        assert query.count("(") == query.count(")")


@pytest.fixture
def agents() -> Iterator[list[str]]:
    """Two nodes' agents, and one that is gone."""
    pages = [page("a", 1), page("b", 2)]
    servers = []
    for content in pages:

        class Handler(BaseHTTPRequestHandler):
            body = content.encode()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.body)

            def log_message(self, *_: Any) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield [*(f"127.0.0.1:{server.server_port}" for server in servers), "127.0.0.1:1"]
    for server in servers:
        server.shutdown()
        server.server_close()


def page(replica: str, count: int) -> str:
    return (
        "# HELP ray_spanlake_requests_total Requests answered.\n# TYPE ray_spanlake_requests_total counter\n"
        f'ray_spanlake_requests_total{{replica="{replica}"}} {count}.0\n'
        "# HELP ray_node_cpu Cores.\n# TYPE ray_node_cpu gauge\nray_node_cpu 2.0\n"
        "# HELP ray_spanlake_pass_rows Rows.\n# TYPE ray_spanlake_pass_rows histogram\n"
        f'ray_spanlake_pass_rows_bucket{{le="+Inf",replica="{replica}"}} 3.0\n'
        f'ray_spanlake_pass_rows_count{{replica="{replica}"}} 3.0\n'
    )


def test_the_metrics_of_all_nodes_are_one_page_that_prometheus_reads(agents: list[str]):
    from prometheus_client.parser import text_string_to_metric_families

    content, kind = collect(agents)
    assert kind.startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(content.decode()))
    samples = {(sample.name, sample.labels.get("replica")): sample.value for f in families for sample in f.samples}
    assert samples[("ray_spanlake_requests_total", "a")] == 1
    assert samples[("ray_spanlake_requests_total", "b")] == 2
    assert samples[("ray_spanlake_pass_rows_count", "b")] == 3
    assert {family.type for family in families} == {"counter", "histogram"}
    assert len(families) == 2  # each family once, and none of Ray's own
    assert b"127.0.0.1:1 does not answer" in content


def test_no_traces_without_an_endpoint(monkeypatch: pytest.MonkeyPatch):
    for name in tracing._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert tracing.configured_provider() is None

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert tracing.traced(app, None) is app


def test_an_endpoint_without_the_library_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match="OTEL_EXPORTER_OTLP_ENDPOINT asks for traces"):
        tracing.configured_provider()


def test_an_endpoint_makes_a_provider(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    provider = tracing.configured_provider()
    assert provider is not None
    assert provider.resource.attributes["service.name"] == "spanlake"
    provider.shutdown()


def test_a_request_is_one_span_of_its_callers_trace_without_its_text(tiny_model_dir: Path):
    import asyncio

    import httpx
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from spanlake.serving.app import make_app
    from spanlake.serving.config import read_config
    from spanlake.serving.service import Service

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def ask() -> None:
        config = read_config({"model": str(tiny_model_dir), "device": "cpu"})
        service = await Service.load(config)
        app = tracing.traced(make_app(service, config, observers=[tracing.observe_trace]), provider)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {"texts": ["Ada met Babbage"], "labels": ["secret label"]}
            headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
            unreadable = headers | {"user-agent": b"\xff\\x"}  # which the library could not read
            await client.post("/v1/extract?Babbage=secret", json=body, headers=unreadable)
            await client.post("/v1/extract", json={**body, "threshold": 2})
            await client.get("/health")
        await service.close(5)

    asyncio.run(ask())
    good, bad = exporter.get_finished_spans()  # none for /health
    assert format(good.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert good.name == bad.name == "POST /v1/extract"
    assert good.attributes is not None and bad.attributes is not None
    assert good.attributes["spanlake.texts"] == 1 and good.attributes["spanlake.model"] == "tiny"
    assert bad.attributes["error.type"] == "invalid"
    for span, status in ((good, 200), (bad, 422)):
        assert span.attributes is not None
        assert span.attributes["http.request.method"] == "POST"
        assert span.attributes["http.route"] == "/v1/extract"
        assert span.attributes["http.response.status_code"] == status
    assert "Babbage" not in good.to_json() and "secret" not in good.to_json()
