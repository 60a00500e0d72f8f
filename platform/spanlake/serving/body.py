"""Reading a request's body: counted while it arrives, decoded strictly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive

from spanlake.errors import shown
from spanlake.serving.config import Limits
from spanlake.serving.errors import ApiError, Gone, malformed, too_large
from spanlake.serving.inflating import inflated, over
from spanlake.serving.schema import parse

_SHORT_BYTES = 64 << 10  # of JSON, read in one or two milliseconds

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


def require_type(request: Request, expected: str) -> None:
    """Raises ApiError 415 for another content type.

    A page of another site can send only other types without asking first, so this keeps such pages out.
    """
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != expected or charset not in ("", "charset=utf-8"):
        raise ApiError(415, "unsupported_type", f"The content type is {shown(given)}; send {expected} in UTF-8.")


def read_chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Returns the body in pieces, inflated where it comes as gzip.

    Raises: ApiError 413 as soon as more than `limit` bytes are announced, have come or have been inflated, 415 for
    another encoding, 400 for damaged gzip; Gone.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return _received(request, limit)
    if encoding not in ("gzip", "x-gzip"):
        raise ApiError(
            415, "unsupported_encoding", f"The content encoding is {shown(encoding)}; send gzip, or no encoding."
        )
    return inflated(_received(request, limit), limit)


async def _received(request: Request, limit: int) -> AsyncIterator[bytes]:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 19 and int(announced) > limit:
        raise over(limit)
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        size += len(message.get("body", b""))
        if size > limit:
            raise over(limit)
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def read_body(request: Request, limit: int) -> bytes:
    """Raises as `read_chunks` does."""
    return b"".join([chunk async for chunk in read_chunks(request, limit)])


async def read_lines(request: Request, limit: int, line_limit: int) -> AsyncIterator[bytes]:
    """Yields the lines that are not blank. Raises as `read_chunks` does, and ApiError 413 for too long a line."""
    rest = bytearray()
    async for chunk in read_chunks(request, limit):
        rest += chunk
        if b"\n" in chunk:
            *whole, rest = rest.split(b"\n")
            for line in whole:
                if line.strip():
                    yield bytes(line)
        if len(rest) > line_limit:
            raise too_large(f"A line has more than {line_limit} bytes; that is the most allowed.")
    if rest.strip():
        yield bytes(rest)


async def read_message(model: type[_Model], body: bytes, limits: Limits) -> _Model:
    """Raises: ApiError as `decode_json` and `parse` do."""
    return await off_loop_if_long(_message_of, body, model, limits)


def _message_of(body: bytes, model: type[_Model], limits: Limits) -> _Model:
    return parse(model, decode_json(body), limits)


async def off_loop_if_long(read: Callable[..., _T], body: bytes, *rest: Any) -> _T:
    """Returns what `read` returns. A long body is read on another thread, and the event loop serves other requests."""
    if len(body) <= _SHORT_BYTES:
        return read(body, *rest)
    return await run_in_threadpool(read, body, *rest)


def decode_json(body: bytes) -> Any:
    """Raises ApiError 400 for a body that is not JSON in UTF-8, or that names a field twice."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise malformed(f"The body is no UTF-8: byte {error.start} cannot be read.") from None
    except RecursionError:
        raise malformed("The body is nested too deeply.") from None
    except ValueError as error:
        reason = error.args[0] if error.args else "unknown"
        raise malformed(f"The body is not JSON: {str(reason)[:200]}.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twin = next(name for name in values if counts[name] > 1)
        raise ValueError(f"the name {shown(twin)} is twice in one object")
    return values


async def until_gone(receive: Receive) -> None:
    """Returns when the client goes away. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
