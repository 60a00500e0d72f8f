"""`POST /v1/extract` as a gRPC method: the same checks, the same answer, the same errors under gRPC's codes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
from starlette.concurrency import run_in_threadpool

from spanlake.calibration import DEFAULT_THRESHOLD
from spanlake.errors import shown
from spanlake.serving import schema
from spanlake.serving.config import Limits
from spanlake.serving.encoding import slices
from spanlake.serving.errors import ApiError, invalid, too_large
from spanlake.serving.grpc_api import extraction_pb2 as messages
from spanlake.serving.keys import Keys
from spanlake.serving.middleware import Observer, RequestRecord, failure
from spanlake.serving.service import Answer, Service

ADD_TO_SERVER = "spanlake.serving.grpc_api.extraction_pb2_grpc.add_ExtractionServicer_to_server"
ROUTE = "/spanlake.v1.Extraction/Extract"
_MOST_BYTES = "max-answer-bytes"  # metadata
_CHANNEL_BYTES = 4 << 20  # that a channel takes by default; it calls more a RESOURCE_EXHAUSTED of its own
_SHORT_BYTES = 8 << 10  # of a request, read in one or two milliseconds
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.OUT_OF_RANGE,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Context(Protocol):
    """What is used of a call's context, Ray Serve's or gRPC's own."""

    def invocation_metadata(self) -> Any: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: Any) -> None: ...


async def extract(
    service: Service,
    keys: Keys | None,
    observers: Sequence[Observer],
    request: messages.ExtractRequest,
    context: Context,
) -> messages.ExtractResponse:
    """The answer, or an empty one with the error in the context: the sentence as details, and in the trailing metadata
    the type and, where trying again helps, `retry-after` in seconds.
    """
    began = time.monotonic()
    record = RequestRecord(uuid.uuid4().hex, "GRPC", ROUTE)
    try:
        if keys:
            record.key = keys.admit(_presented_key(context))
        most = _most_bytes(context)
        parts = request, record, service.config.limits
        is_short = request.ByteSize() <= _SHORT_BYTES
        asked = _asked(*parts) if is_short else await run_in_threadpool(_asked, *parts)
        answer = await service.extract(asked)
        record.model, record.entities = answer.model.name, answer.entities
        response = await _response(answer)
        if (size := response.ByteSize()) > most:
            raise too_large(
                f"The answer has {size} bytes, and the channel takes {most}; send fewer texts or labels, or raise the "
                f"threshold, or set grpc.max_receive_message_length of the channel and send it as the metadata "
                f"{_MOST_BYTES}."
            )
        record.status = 200
        return response
    except ApiError as error:
        return _refuse(error, record, context)
    except Exception:
        _refuse(failure(record), record, context)
        raise
    finally:
        record.seconds = time.monotonic() - began
        for observe in observers:
            observe(record)


def _asked(request: messages.ExtractRequest, record: RequestRecord, limits: Limits) -> schema.ExtractRequest:
    if request.offsets not in messages.Offsets.values():
        raise invalid(f"offsets is {request.offsets}; give one of {', '.join(messages.Offsets.keys())}.")
    if request.labels and request.label_sets:
        raise invalid("The request has both labels and label_sets; give one of them.")
    sets = [each.labels for each in request.label_sets] or [request.labels]
    described = [_described(labels) for labels in sets]
    values = {
        "texts": list(request.texts),
        "labels": described if request.label_sets else described[0],
        "threshold": _threshold(request, [label for labels in sets for label in labels]),
        "nested": request.nested,
        "multi_label": request.multi_label,
        "join_adjacent": request.join_adjacent,
        "model": request.model if request.HasField("model") else None,
        "offsets": messages.Offsets.Name(request.offsets).lower(),
        "rules": request.rules if request.HasField("rules") else None,
        "redact": request.redact if request.HasField("redact") else None,
    }
    record.labels, record.texts = sum(map(len, sets)), len(request.texts)
    record.characters = sum(map(len, request.texts))
    return schema.parse(schema.ExtractRequest, values, limits)


def _described(labels: Sequence[messages.Label]) -> dict[str, str]:
    by_name = {label.name: label for label in labels}
    if twin := next((label for label in labels if label != by_name[label.name]), None):
        raise _given_twice(twin.name)
    return {name: label.description if label.HasField("description") else name for name, label in by_name.items()}


def _threshold(request: messages.ExtractRequest, labels: Sequence[messages.Label]) -> float | dict[str, float] | None:
    default = request.threshold if request.HasField("threshold") else None
    own: dict[str, float] = {}
    for label in labels:
        if label.HasField("threshold") and own.setdefault(label.name, label.threshold) != label.threshold:
            raise _given_twice(label.name)
    if not own:
        return default
    return {label.name: own.get(label.name, DEFAULT_THRESHOLD if default is None else default) for label in labels}


def _given_twice(name: str) -> ApiError:
    return invalid(f"The label {shown(name)} is given twice with different values; give it once.")


async def _response(answer: Answer) -> messages.ExtractResponse:
    response = messages.ExtractResponse(model=messages.Model(**answer.model.model_dump()))
    for result in answer.results:
        if isinstance(result, ApiError):
            response.results.add(error=messages.Error(type=result.kind, message=result.message))
        else:
            found = response.results.add(redacted=result.redacted)
            async for part in slices(result.entities):
                found.entities.extend(messages.Entity(**entity.to_dict()) for entity in part)
    return response


def _refuse(error: ApiError, record: RequestRecord, context: Context) -> messages.ExtractResponse:
    record.status, record.error_type = error.status, error.kind
    context.set_code(_CODES.get(error.status, grpc.StatusCode.INTERNAL))
    context.set_details(error.message)
    headers = {name.lower(): value for name, value in error.headers().items()}
    context.set_trailing_metadata([("type", error.kind), *headers.items()])
    return messages.ExtractResponse()


def _most_bytes(context: Context) -> int:
    given = dict(context.invocation_metadata()).get(_MOST_BYTES)
    if given is None:
        return _CHANNEL_BYTES
    if not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise invalid(f"The metadata {_MOST_BYTES} is {shown(given)}; give a number of bytes, such as 67108864.")
    return int(given)


def _presented_key(context: Context) -> str | None:
    metadata = dict(context.invocation_metadata())
    scheme, _, key = metadata.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else metadata.get("x-api-key")
