"""Around every request: its id, its key, the headers of its answer, its errors in one form, and one line in the log.

Nothing of a text, a label or a key is ever logged.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanlake.serving.errors import ApiError
from spanlake.serving.keys import Keys

_log = logging.getLogger(__name__)
_access = logging.getLogger("spanlake.access")

_OPEN_PATHS = ("/health", "/health/")  # these need no key
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
]
_RECORD = "spanlake.record"  # where a request's scope holds its record


@dataclass
class RequestRecord:
    """What is known of a request after its answer. Counts that are not known are 0."""

    request_id: str
    method: str
    route: str = "unmatched"  # the route's template, so that there are few values
    status: int = 499  # the client went away
    seconds: float = 0.0
    error_type: str | None = None
    key: str | None = None  # its name
    model: str | None = None
    texts: int = 0
    characters: int = 0
    labels: int = 0
    entities: int = 0


Observer = Callable[[RequestRecord], None]


def record_of(scope: Scope) -> RequestRecord:
    record: RequestRecord = scope[_RECORD]
    return record


def log_access(record: RequestRecord) -> None:
    answered = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    _access.info(json.dumps({"time": answered, **vars(record), "seconds": round(record.seconds, 4)}))


class Envelope:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, keys: Keys | None, observers: Sequence[Observer], echo_request_id: bool) -> None:
        self._app = app
        self._keys = keys
        self._observers = observers
        self._echo = echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers), scope["method"])
        scope[_RECORD] = record
        own = [(b"x-request-id", record.request_id.encode()), *_HEADERS] if self._echo else _HEADERS
        started = finished = False

        def conclude() -> None:
            nonlocal finished
            finished = True
            record.seconds = time.monotonic() - began
            if route := scope.get("route"):
                record.route = getattr(route, "path", record.route).rstrip("/") or "/"
            for observe in self._observers:
                observe(record)

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                record.status = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] += [header for header in own if header[0] not in given]
            elif not message.get("more_body", False) and not finished:
                conclude()  # before a span around this application ends
            await send(message)

        try:
            if self._keys is not None and scope["path"] not in _OPEN_PATHS:
                record.key = self._keys.admit(_presented_key(headers))
            await self._app(scope, receive, send_on)
        except ApiError as error:
            await send_error(error, scope, send_on)
        except Exception:
            _log.exception("request %s failed", record.request_id)
            if not started:
                await send_error(failure(record), scope, send_on)
            elif not finished:
                raise
        finally:
            if not finished:
                conclude()


def failure(record: RequestRecord) -> ApiError:
    message = f"The server failed over this request; its log says why under the id {record.request_id}."
    return ApiError(500, "internal", message)


async def send_error(error: ApiError, scope: Scope, send: Send) -> None:
    record_of(scope).error_type = error.kind
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    if error.status == 413:
        headers["connection"] = "close"  # otherwise the client would go on sending
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _presented_key(headers: Headers) -> str | None:
    if key := headers.get("x-api-key"):
        return key
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":  # a browser sends this after it has asked its user
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
