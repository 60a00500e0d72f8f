"""Describes the API as an OpenAPI document, with the messages of `schema`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import spanlake
from spanlake.serving import schema

JSON = "application/json"
NDJSON = "application/x-ndjson"

_MESSAGES = (
    schema.ExtractRequest,
    schema.ExtractResponse,
    schema.Question,
    schema.ModelInfo,
    schema.ModelList,
    schema.Status,
    schema.ErrorResponse,
)
_ERRORS = {
    400: "The body is not JSON.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    413: "The body, a text, the number of texts or labels, what they find or what they cost is over its limit.",
    415: "The content type is not the expected one.",
    422: "A value is not allowed.",
    429: "The queue is full or the key's rate is used up: try again after `Retry-After` seconds.",
    500: "The server failed over the request.",
    503: "The server is starting or stopping: try again after `Retry-After` seconds.",
    504: "The request was not answered within its time.",
}
_STREAM = (
    'The first line is a Question, each further line a text: a JSON string, or `{"text": …}`. The answer begins with '
    '`{"model": …}`, has a line `{"index", "entities"}` or `{"index", "error"}` for each text in turn, and ends with '
    '`{"done": true, "texts": n}`; without that last line, it is not whole.'
)


def openapi_document(*, with_keys: bool) -> dict[str, Any]:
    """Returns the document. `with_keys`: whether the server asks for API keys."""
    _, messages = models_json_schema(
        [(message, "validation") for message in _MESSAGES], ref_template="#/components/schemas/{model}"
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Spanlake", "version": spanlake.__version__},
        "paths": {
            "/v1/extract": {
                "post": {
                    "summary": "Find entities in texts",
                    "operationId": "extract_v1_extract_post",
                    "requestBody": _body(JSON, schema.ExtractRequest),
                    "responses": _answer(schema.ExtractResponse)
                    | _errors(400, 401, 404, 413, 415, 422, 429, 500, 503, 504),
                }
            },
            "/v1/extract/stream": {
                "post": {
                    "summary": "Find entities in many texts, one line of JSON each",
                    "description": _STREAM,
                    "operationId": "stream_v1_extract_stream_post",
                    "requestBody": _body(NDJSON, schema.Question),
                    "responses": {
                        "200": {"description": "Lines of JSON.", "content": {NDJSON: {"schema": {"type": "string"}}}}
                    }
                    | _errors(400, 401, 404, 413, 415, 422, 429, 500, 503),
                }
            },
            "/v1/model": {"get": _read("model_v1_model_get", "The default model", schema.ModelInfo, 401)},
            "/v1/models": {
                "get": _read("models_v1_models_get", "All models that a request may name", schema.ModelList, 401)
            },
            "/health": {"get": _read("health_health_get", "Whether the process runs", schema.Status)},
            "/ready": {"get": _read("ready_ready_get", "Whether the model answers", schema.Status, 401, 503)},
        },
        "components": {"schemas": messages["$defs"]},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _read(name: str, summary: str, answer: type[BaseModel], *errors: int) -> dict[str, Any]:
    return {"summary": summary, "operationId": name, "responses": _answer(answer) | _errors(*errors)}


def _body(kind: str, message: type[BaseModel]) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": _reference(message)}}}


def _answer(message: type[BaseModel]) -> dict[str, Any]:
    return {"200": {"description": "Successful Response", "content": {JSON: {"schema": _reference(message)}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {JSON: {"schema": _reference(schema.ErrorResponse)}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}


def _reference(message: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{message.__name__}"}
