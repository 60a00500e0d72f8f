"""The HTTP API as an ASGI application, the same under Ray Serve and under any other ASGI server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from spanlake.serving import schema
from spanlake.serving.body import read_body, read_message, require_type, until_gone
from spanlake.serving.config import ServeConfig
from spanlake.serving.encoding import answer_json
from spanlake.serving.errors import ApiError, Gone
from spanlake.serving.keys import Keys
from spanlake.serving.middleware import Envelope, Observer, failure, log_access, record_of, send_error
from spanlake.serving.openapi import JSON, NDJSON, OPERATIONS, openapi_document
from spanlake.serving.reference import reference_page
from spanlake.serving.service import Service
from spanlake.serving.stream import StreamResponse

_PAGE = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")  # that a browser's OpenTelemetry adds to every request
_COMPRESSED_BYTES = 2000  # shorter answers gain less than they cost
_COMPRESSION = 4  # of 1 to 9; a higher level takes longer and saves little of JSON

Metrics = Callable[[], tuple[bytes, str]]
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    service: Service,
    config: ServeConfig,
    keys: Keys | None = None,
    observers: Sequence[Observer] = (),
    metrics: Metrics | None = None,
    echo_request_id: bool = True,
) -> ASGIApp:
    """`observers` are called with the record of each answered request; `metrics` gives a document and its type.
    `echo_request_id`: whether answers carry X-Request-ID, which a proxy before the application may see to.
    """
    app = Starlette(
        routes=[
            *_api_routes(service),
            *_page_routes(openapi_document(with_keys=bool(keys))),
            *(_metrics_routes(metrics) if metrics else ()),
        ],
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse_route,
            Gone: _hang_up,
            Exception: _report_failure,
        },
    )
    compressed = GZipMiddleware(app, minimum_size=_COMPRESSED_BYTES, compresslevel=_COMPRESSION)
    answering = Envelope(compressed, keys, [log_access, *observers], echo_request_id)
    if not config.cors_origins:
        return answering
    # First, because a browser asks whether it may call before it sends a key, and needs these headers to show an error.
    return CORSMiddleware(
        answering,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=[
            "Authorization",
            "Content-Encoding",
            "Content-Type",
            "X-API-Key",
            "X-Request-ID",
            *_TRACE_HEADERS,
        ],
        expose_headers=["Retry-After", "X-Request-ID"],
    )


# --- routes -----------------------------------------------------------------------------------------------------------


def _api_routes(service: Service) -> list[Route]:
    """Returns those that `openapi` describes, each also with a slash at its end: many clients do not follow a redirect
    of a POST. Starlette adds HEAD to GET.
    """
    limits = service.config.limits

    async def extract(request: Request) -> Response:
        require_type(request, JSON)
        service.admit()
        record = record_of(request.scope)
        asked = await read_message(schema.ExtractRequest, await read_body(request, limits.body_bytes), limits)
        record.model, record.texts = asked.model, len(asked.texts)
        record.labels = sum(map(len, asked.label_sets))
        record.characters = sum(map(len, asked.texts))
        gone = asyncio.ensure_future(until_gone(request.receive))
        try:
            answer = await service.extract(asked, gone)
        finally:
            gone.cancel()
        record.model = answer.model.name
        record.entities = answer.entities
        return Response(await answer_json(answer), media_type=JSON)

    async def stream(request: Request) -> Response:
        require_type(request, NDJSON)
        service.admit()
        return StreamResponse(service, request)

    async def model(_: Request) -> Response:
        return _json(service.info().model_dump())

    async def models(_: Request) -> Response:
        return _json(service.list_models().model_dump())

    async def health(_: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(_: Request) -> Response:
        service.check()
        return _json({"status": "ready"})

    endpoints = (extract, stream, model, models, health, ready)
    by_name: dict[str, Endpoint] = {endpoint.__name__: endpoint for endpoint in endpoints}
    return [
        Route(path, by_name[operation.name], methods=[operation.method])
        for operation in OPERATIONS
        for path in (operation.path, f"{operation.path}/")
    ]


def _page_routes(document: dict[str, Any]) -> list[Route]:
    files = {file.name: file for file in _PAGE.iterdir() if file.suffix in _TYPES}

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> Response:
        return HTMLResponse(reference_page(document))

    async def page(_: Request) -> Response:
        return FileResponse(_PAGE / "index.html", media_type="text/html")

    async def page_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name], media_type=_TYPES[files[name].suffix])

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/", page),
        Route("/page/{name}", page_file),
    ]


def _metrics_routes(metrics: Metrics) -> list[Route]:
    async def metrics_page(_: Request) -> Response:
        content, kind = await run_in_threadpool(metrics)  # it asks other machines
        return Response(content, media_type=kind)

    return [Route("/metrics", metrics_page)]


def _json(values: dict[str, Any]) -> Response:
    return Response(json.dumps(values), media_type=JSON)


# --- errors -----------------------------------------------------------------------------------------------------------


class _Refusal(Response):
    def __init__(self, error: ApiError) -> None:
        super().__init__()
        self._error = error
        self.status_code = error.status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_error(self._error, scope, send)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _Refusal(error)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        return _Refusal(ApiError(404, "not_found", f"There is nothing at {path}; GET /docs lists all paths."))
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        message = f"{path} does not take {request.method[:20]}; it takes {allowed}."
        refusal = ApiError(405, "method_not_allowed", message)
        refusal.allow = allowed
        return _Refusal(refusal)
    return _Refusal(ApiError(error.status_code, "refused", str(error.detail)))


async def _hang_up(request: Request, error: Exception) -> Response:
    record_of(request.scope).error_type = "gone"
    return Response(status_code=499)  # nobody reads it


async def _report_failure(request: Request, error: Exception) -> Response:
    return _Refusal(failure(record_of(request.scope)))
