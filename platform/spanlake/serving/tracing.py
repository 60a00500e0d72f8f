"""OpenTelemetry traces, where the standard variable OTEL_EXPORTER_OTLP_ENDPOINT says who collects them.

One span per request, which continues the caller's trace. Nothing of a text or a label is in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from spanlake.errors import UserError
from spanlake.serving.middleware import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_WATCHED = ("/health", "/ready", "/metrics")


def configured_provider() -> TracerProvider | None:
    """None where no endpoint is set. Raises `UserError` where one is set and OpenTelemetry is not installed."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserError(
            f"{_ENDPOINTS[0]} asks for traces, but {error.name} is not installed: pip install 'spanlake[serve]'."
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "spanlake")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def traced(app: ASGIApp, provider: TracerProvider | None) -> ASGIApp:
    """The application with a span around each request but those that watch it, or itself without a provider."""
    return app if provider is None else _Traced(app, provider)


class _Traced:
    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("spanlake.serving")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        if scope["type"] != "http" or scope["path"] in _WATCHED:
            await self._app(scope, receive, send)
            return
        caller = extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(scope["method"], caller, SpanKind.SERVER):
            await self._app(scope, receive, send)


def observe_trace(record: RequestRecord) -> None:
    """Adds to the request's span what is known at its end."""
    from opentelemetry.trace import Status, StatusCode, get_current_span

    span = get_current_span()
    span.update_name(f"{record.method} {record.route}")
    span.set_attributes(
        {
            "http.request.method": record.method,
            "http.response.status_code": record.status,
            "http.route": record.route,
            "spanlake.request_id": record.request_id,
            "spanlake.texts": record.texts,
            "spanlake.characters": record.characters,
            "spanlake.labels": record.labels,
            "spanlake.entities": record.entities,
        }
    )
    if record.model:
        span.set_attribute("spanlake.model", record.model)
    if record.error_type:
        span.set_attribute("error.type", record.error_type)
    if record.status >= 500:
        span.set_status(Status(StatusCode.ERROR))
