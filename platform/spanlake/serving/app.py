"""The HTTP API as an ASGI application, the same under Ray Serve and under any other ASGI server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.types import ASGIApp

import spanlake
from spanlake.serving import schema
from spanlake.serving.body import decode_json, read_body, require_type, unless_gone
from spanlake.serving.config import ServeConfig
from spanlake.serving.errors import ApiError, Gone, invalid
from spanlake.serving.keys import Keys
from spanlake.serving.middleware import Envelope, Observer, failure, log_access, record_of, send_error
from spanlake.serving.reference import reference_page
from spanlake.serving.service import Answer, Service
from spanlake.serving.stream import NDJSON, StreamResponse

_PAGE = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ERRORS = {
    400: "The body is no JSON.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    413: "The body, a text, or the number of texts or labels is over its limit.",
    415: "The content type is not the expected one.",
    422: "A value is not allowed.",
    429: "The queue is full or the key's rate is used up: try again after `Retry-After` seconds.",
    500: "The server failed over the request.",
    503: "The server is starting or stopping: try again after `Retry-After` seconds.",
    504: "The request was not answered within its time.",
}

Metrics = Callable[[], tuple[bytes, str]]


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
    app = FastAPI(title="Spanlake", version=spanlake.__version__, docs_url=None, redoc_url=None)
    _add_extraction(app, service)
    _add_state(app, service)
    _add_pages(app, metrics)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_values)
    app.add_exception_handler(Gone, _hang_up)
    app.add_exception_handler(Exception, _report_failure)
    app.openapi = lambda: _openapi(app, bool(keys))  # type: ignore[method-assign]
    wrapped: ASGIApp = app
    if config.cors_origins:
        wrapped = CORSMiddleware(
            app,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    return Envelope(wrapped, keys, [log_access, *observers], echo_request_id)


# --- routes -----------------------------------------------------------------------------------------------------------


def _add_extraction(app: FastAPI, service: Service) -> None:
    limits = service.config.limits

    @app.post(
        "/v1/extract",
        summary="Find entities in texts",
        responses=_responses(schema.ExtractResponse, 400, 401, 404, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_request_body("application/json", "ExtractRequest"),
    )
    async def extract(request: Request) -> Response:
        require_type(request, "application/json")
        service.admit()
        record = record_of(request.scope)
        asked = schema.parse(schema.ExtractRequest, decode_json(await read_body(request, limits.body_bytes)))
        record.model, record.labels, record.texts = asked.model, len(asked.labels), len(asked.texts)
        record.characters = sum(map(len, asked.texts))
        answer = await unless_gone(service.extract(asked), request.receive)
        record.model = answer.model.name
        record.entities = sum(len(result) for result in answer.results if isinstance(result, list))
        return _json(answer_json(answer))

    @app.post(
        "/v1/extract/stream",
        summary="Find entities in many texts, one line of JSON each",
        description='The first line is a Question, each further line a text: a JSON string, or `{"text": …}`. The '
        'answer begins with `{"model": …}`, has a line `{"index", "entities"}` or `{"index", "error"}` for each text '
        'in turn, and ends with `{"done": true, "texts": n}`; without that last line, it is not whole.',
        responses={
            200: {"content": {NDJSON: {"schema": {"type": "string"}}}, "description": "Lines of JSON."},
            **_errors(400, 401, 404, 413, 415, 422, 429, 500, 503),
        },
        openapi_extra=_request_body(NDJSON, "Question"),
    )
    async def stream(request: Request) -> Response:
        require_type(request, NDJSON)
        service.admit()
        return StreamResponse(service, request)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", summary="The default model", responses=_responses(schema.ModelInfo, 401))
    async def model() -> Response:
        return _json(service.info().model_dump())

    @app.get("/v1/models", summary="All models that a request may name", responses=_responses(schema.ModelList, 401))
    async def models() -> Response:
        return _json({"default": service.names[0], "models": service.names})

    @app.get("/health", summary="Whether the process runs", responses=_responses(schema.Status))
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready", summary="Whether the model answers", responses=_responses(schema.Status, 401, 503))
    async def ready() -> Response:
        await service.check()
        return _json({"status": "ready"})


def _add_pages(app: FastAPI, metrics: Metrics | None) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", media_type="text/html")

    files = {file.name: file for file in _PAGE.iterdir() if file.suffix in _TYPES} if _PAGE.is_dir() else {}

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name], media_type=_TYPES[files[name].suffix])

    if metrics is not None:

        @app.get("/metrics", include_in_schema=False)
        async def metrics_page() -> Response:
            content, kind = metrics()
            return Response(content, media_type=kind)


def answer_json(answer: Answer) -> dict[str, Any]:
    """As `ExtractResponse` describes it."""
    results = [None if isinstance(r, ApiError) else [entity.to_dict() for entity in r] for r in answer.results]
    errors = [
        {"index": index, "type": result.kind, "message": result.message}
        for index, result in enumerate(answer.results)
        if isinstance(result, ApiError)
    ]
    return {"model": answer.model.model_dump(), "results": results} | ({"errors": errors} if errors else {})


def _json(values: dict[str, Any]) -> Response:
    """In ASCII: a text may hold what UTF-8 cannot, such as half of a surrogate pair."""
    return Response(json.dumps(values), media_type="application/json")


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
        return _Refusal(ApiError(404, "not_found", f"There is nothing at {path}; GET /docs lists what there is."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} does not take {request.method[:20]}; it takes {allowed}."
        refusal = ApiError(405, "method_not_allowed", message)
        refusal.allow = allowed
        return _Refusal(refusal)
    return _Refusal(ApiError(error.status_code, "refused", str(error.detail)))


async def _hang_up(request: Request, error: Exception) -> Response:
    record_of(request.scope).error_type = "gone"
    return Response(status_code=499)  # which nobody reads


async def _report_failure(request: Request, error: Exception) -> Response:
    return _Refusal(failure(record_of(request.scope)))


async def _refuse_values(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _Refusal(invalid(str(error.errors()[0]["msg"])))


# --- OpenAPI ----------------------------------------------------------------------------------------------------------


def _request_body(kind: str, name: str) -> dict[str, Any]:
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _responses(model: type[BaseModel], *errors: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **_errors(*errors)}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schema.ErrorResponse, "description": _ERRORS[status]} for status in statuses}


def _openapi(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    """FastAPI's, with the messages that this application reads itself."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, read_here = models_json_schema(
            [(schema.ExtractRequest, "validation"), (schema.Question, "validation")],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] |= read_here["$defs"]
        if with_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
