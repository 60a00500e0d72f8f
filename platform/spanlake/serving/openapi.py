"""The routes of the API, which `app` serves, and their description as an OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import spanlake
from spanlake.serving import schema

JSON = "application/json"
NDJSON = "application/x-ndjson"

_ERRORS = {
    400: "The body is not JSON, or not the gzip that it says.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    413: "The body, a text, the number of texts or labels, what they find or what they cost is over its limit.",
    415: "The content type or the content encoding is not the expected one.",
    422: "A value is not allowed.",
    429: "The queue is full or the key's rate is used up: try again after `Retry-After` seconds.",
    500: "The server failed over the request.",
    503: "The server is starting or stopping: try again after `Retry-After` seconds.",
    504: "The request was not answered within its time.",
}
_STREAM = (
    "The first line is a Question, each further line a text: a JSON string, or a StreamedText. The answer begins with "
    '`{"model": …}`, has a line `{"index", "entities"}` or `{"index", "error"}` for each text in turn, and ends with '
    '`{"done": true, "texts": n}`; without that last line, it is not whole. With `redact`, lines have "redacted" too.'
)


@dataclass(frozen=True)
class Operation:
    """One route of the API. `app` serves it by the endpoint of the same name."""

    name: str
    method: str
    path: str
    summary: str
    gives: type[BaseModel] | None  # as JSON; None: lines of JSON
    errors: tuple[int, ...]
    takes: tuple[str, type[BaseModel]] | None = None  # content type and message of the body
    description: str | None = None

    def described(self) -> dict[str, Any]:
        """Returns the operation as OpenAPI describes it."""
        described: dict[str, Any] = {"summary": self.summary}
        if self.description:
            described["description"] = self.description
        described["operationId"] = f"{self.name}{self.path.replace('/', '_')}_{self.method.lower()}"
        if self.takes:
            kind, message = self.takes
            described["requestBody"] = {"required": True, "content": {kind: {"schema": _reference(message)}}}
        described["responses"] = _answer(self.gives) | _errors(*self.errors)
        return described


OPERATIONS = (
    Operation(
        "extract",
        "POST",
        "/v1/extract",
        "Find entities in texts",
        schema.ExtractResponse,
        (400, 401, 404, 413, 415, 422, 429, 500, 503, 504),
        takes=(JSON, schema.ExtractRequest),
    ),
    Operation(
        "stream",
        "POST",
        "/v1/extract/stream",
        "Find entities in many texts, one line of JSON each",
        None,
        (400, 401, 404, 413, 415, 422, 429, 500, 503),
        takes=(NDJSON, schema.Question),
        description=_STREAM,
    ),
    Operation("model", "GET", "/v1/model", "The default model", schema.ModelInfo, (401,)),
    Operation("models", "GET", "/v1/models", "All models that a request may name", schema.ModelList, (401,)),
    Operation("health", "GET", "/health", "Whether the process runs", schema.Status, ()),
    Operation("ready", "GET", "/ready", "Whether the model answers", schema.Status, (401, 503)),
)


def openapi_document(*, with_keys: bool) -> dict[str, Any]:
    """Returns the document. `with_keys`: whether the server asks for API keys."""
    messages: set[type[BaseModel]] = {schema.ErrorResponse, schema.StreamedText}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.described()
        messages |= {message for message in (operation.gives, operation.takes and operation.takes[1]) if message}
    _, schemas = models_json_schema(
        [(message, "validation") for message in sorted(messages, key=lambda message: message.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Spanlake", "version": spanlake.__version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _answer(message: type[BaseModel] | None) -> dict[str, Any]:
    if message is None:
        return {"200": {"description": "Lines of JSON.", "content": {NDJSON: {"schema": {"type": "string"}}}}}
    return {"200": {"description": "Successful Response", "content": {JSON: {"schema": _reference(message)}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {JSON: {"schema": _reference(schema.ErrorResponse)}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}


def _reference(message: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{message.__name__}"}
