"""OpenTelemetry traces, where the standard variable OTEL_EXPORTER_OTLP_ENDPOINT says who collects them.

One span per request, which continues the caller's trace. Nothing of a text or a label is in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from spanlake.errors import UserError
from spanlake.serving.middleware import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_WATCHED = "^[^/]*//[^/]*/(health|ready|metrics)$"  # a regular expression of URLs
_WHOLE = "spanlake.scope"  # where the scope that the library sees holds the whole one


def configured_provider() -> TracerProvider | None:
    """Returns None if no endpoint is set. Raises `UserError` if one is set and OpenTelemetry is not installed."""
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
    """Returns the application with a span around each request, except health checks and metrics. Without a provider,
    returns the application itself.
    """
    if provider is None:
        return app
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the stable names of attributes
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.metrics import NoOpMeterProvider

    async def with_whole_scope(seen: Scope, receive: Receive, send: Send) -> None:
        await app(seen[_WHOLE], receive, send)

    spans = OpenTelemetryMiddleware(
        with_whole_scope,
        excluded_urls=_WATCHED,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        exclude_spans=["receive", "send"],
    )

    async def with_seen_scope(scope: Scope, receive: Receive, send: Send) -> None:
        await spans(_seen(scope), receive, send)

    return with_seen_scope


def _seen(scope: Scope) -> Scope:
    """Returns a scope for the library: without the query, which may contain a text, and without headers that are not
    ASCII, which the library may fail to decode.
    """
    if scope["type"] != "http":
        return {**scope, _WHOLE: scope}
    headers = [(name, value) for name, value in scope["headers"] if value.isascii()]
    return {**scope, "query_string": b"", "headers": headers, _WHOLE: scope}


def observe_trace(record: RequestRecord) -> None:
    """Adds to the request's span the facts known at its end."""
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    span.update_name(f"{record.method} {record.route}")
    span.set_attributes(
        {
            "http.response.status_code": record.status,  # also if the caller is gone
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
