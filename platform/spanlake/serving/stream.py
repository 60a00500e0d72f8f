"""Many texts over one connection: lines of JSON in, lines of JSON out, in the same order and while more are still sent.

No more than a window of texts is in memory, so a client that reads no answers can send no more texts.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spanlake.serving.body import decode_json, off_loop_if_long, read_lines, read_message
from spanlake.serving.config import Limits
from spanlake.serving.encoding import entities_json
from spanlake.serving.errors import ApiError, Gone, invalid, malformed
from spanlake.serving.middleware import RequestRecord, record_of, send_error
from spanlake.serving.openapi import NDJSON
from spanlake.serving.schema import ModelName, Question, StreamedText, check_text, parse
from spanlake.serving.service import Service


class StreamResponse(Response):
    """Answers while it reads. Starlette's own responses would take the rest of the body for a lost client."""

    media_type = NDJSON

    def __init__(self, service: Service, request: Request) -> None:
        super().__init__()
        self._service = service
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        started = False
        try:
            async for line in _answer(self._service, self._request, record):
                if not started:
                    headers = [(b"content-type", NDJSON.encode())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                await send({"type": "http.response.body", "body": line, "more_body": True})
        except Gone:
            record.status, record.error_type = 499, "gone"
            return
        except ApiError as error:
            if not started:
                await send_error(error, scope, send)
                return
            record.error_type = error.kind
            await send({"type": "http.response.body", "body": _line(error.body()), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _answer(service: Service, request: Request, record: RequestRecord) -> AsyncIterator[bytes]:
    limits = service.config.limits
    lines = read_lines(request, limits.stream_bytes, limits.body_bytes)
    first = await anext(lines, None)
    if first is None:
        raise malformed("The body is empty; its first line says what to look for, and each further one is a text.")
    question = await read_message(Question, first, limits)
    record.model, record.labels = question.model, len(question.labels)

    async def texts() -> AsyncIterator[StreamedText | ApiError]:
        async for line in lines:
            try:
                streamed = await off_loop_if_long(_text_of, line, record.texts, limits)
                check_text(record.texts, streamed.text, limits)
            except ApiError as error:  # of this line alone
                yield error
            else:
                record.characters += len(streamed.text)
                yield streamed
            record.texts += 1

    index = 0
    async for result in service.stream(question, texts()):
        if isinstance(result, ModelName):
            record.model = result.name
            yield _line({"model": result.model_dump()})
            continue
        if isinstance(result, ApiError):
            yield _line({"index": index, **result.body()})
        else:
            record.entities += len(result.entities)
            redacted = f', "redacted": {json.dumps(result.redacted)}' if question.redact else ""
            yield f'{{"index": {index}, "entities": {await entities_json(result.entities)}{redacted}}}\n'.encode()
        index += 1
    yield _line({"done": True, "texts": index})


def _text_of(line: bytes, index: int, limits: Limits) -> StreamedText:
    value = decode_json(line)
    if isinstance(value, str):
        return StreamedText(text=value)
    if not isinstance(value, dict):
        raise invalid(f'Text {index} is neither a string nor {{"text": …}}.')
    return parse(StreamedText, value, limits)


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
