"""Ask a Spanlake server from Python.

An answer depends on nothing but the request, so whatever fails on the way is asked again until the deadline: a server
that is busy, starting or gone, a connection that breaks before the last byte.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError, one_line, shown
from spanlake.labels import Labels, Threshold

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds
_BUSY = (429, 502, 503)
_BUSY_KINDS = ("overloaded", "unavailable", "deadline")  # as a stream names them, which has sent its status before
_JSON, _NDJSON = "application/json", "application/x-ndjson"
_CHUNK_BYTES = 48 << 10  # of a stream go into one request: httpx sends all of it before it reads the answer
_CHUNKS_AHEAD = 2

_T = TypeVar("_T")


class RefusedError(UserError):
    """The server understood that the request cannot be answered. `kind` and `status` are those of its answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class NoAnswerError(ShortfallError):
    """No answer came before the deadline, or not one that a Spanlake server gives."""


class TextError(ShortfallError):
    """A text that the server could not answer, while it answered others."""

    def __init__(self, index: int, kind: str, message: str) -> None:
        super().__init__(f"Text {index}: {message}")
        self.index = index
        self.kind = kind


class PartialError(ShortfallError):
    """Some texts of a request have no answer: `results` holds None for them, `errors` says why."""

    def __init__(self, results: list[list[Entity] | None], errors: list[TextError]) -> None:
        super().__init__(f"{len(errors)} of {len(results)} texts could not be answered; the first: {errors[0]}")
        self.results = results
        self.errors = errors


@dataclass(frozen=True)
class Model:
    """The model that answers. `fingerprint` is the SHA-256 of all that determines its answers."""

    name: str
    fingerprint: str


class Client:
    """A server's answers, one call at a time or streamed. Safe to share between threads.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.extract(["Alain Farley works at McGill University"], ["person", "organization"])
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        seconds: float = 60,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`seconds`: until a call, or a part of a stream, fails, with all that is asked again. `transport`: how to
        send, for callers with proxies or certificates of their own.
        """
        self._seconds = _checked(seconds)
        self._http = httpx.Client(base_url=_checked_url(url), headers=_headers(api_key), transport=transport)

    def extract(
        self,
        texts: Sequence[str],
        labels: Labels,
        threshold: Threshold = 0.5,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
    ) -> list[list[Entity]]:
        """The entities of each text, by position; arguments as of `Extractor.extract`.

        Raises `RefusedError` for what the server does not accept, `PartialError` where it answers some of the texts,
        `NoAnswerError` where it answers none in time.
        """
        body = json.dumps({"texts": _listed(texts), **_question(labels, threshold, nested, multi_label, model)})
        return _results(self._send("POST", "v1/extract", body, _json), len(texts))

    def stream(
        self,
        texts: Iterable[str],
        labels: Labels,
        threshold: Threshold = 0.5,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
    ) -> Iterator[list[Entity] | TextError]:
        """The entities of each text in turn, or why there are none, reading `texts` a bounded way ahead.

        Raises as `extract` does.
        """
        question = _question(labels, threshold, nested, multi_label, model)
        answered = 0
        with ThreadPoolExecutor(_CHUNKS_AHEAD, thread_name_prefix="spanlake-client") as pool:
            ahead: deque[Future[list[list[Entity] | TextError]]] = deque()
            for chunk in _chunks(texts):
                ahead.append(pool.submit(self._send_chunk, question, chunk))
                if len(ahead) > _CHUNKS_AHEAD:
                    for result in ahead.popleft().result():
                        yield _placed(result, answered)
                        answered += 1
            for future in ahead:
                for result in future.result():
                    yield _placed(result, answered)
                    answered += 1

    def model(self) -> Model:
        """The model that answers where a call names none. Raises as `extract` does."""
        return _model(self._send("GET", "v1/model", None, _json))

    def is_ready(self) -> bool:
        """Whether the server's model answers now; asked once."""
        try:
            return self._http.get("ready", timeout=self._seconds).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send_chunk(self, question: dict[str, Any], texts: list[str]) -> list[list[Entity] | TextError]:
        return self._send("POST", "v1/extract/stream", _lines(question, texts), _streamed(len(texts)))

    def _send(self, method: str, path: str, body: str | None, read: Callable[[httpx.Response], _T]) -> _T:
        attempts = _Attempts(self._seconds)
        while True:
            try:
                return read(self._http.request(method, path, content=body, headers=_type(path), timeout=attempts.left))
            except (_AgainError, httpx.TransportError) as error:
                time.sleep(attempts.pause(error))


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        seconds: float = 60,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `Client`."""
        self._seconds = _checked(seconds)
        self._http = httpx.AsyncClient(base_url=_checked_url(url), headers=_headers(api_key), transport=transport)

    async def extract(
        self,
        texts: Sequence[str],
        labels: Labels,
        threshold: Threshold = 0.5,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
    ) -> list[list[Entity]]:
        """As `Client.extract`."""
        body = json.dumps({"texts": _listed(texts), **_question(labels, threshold, nested, multi_label, model)})
        return _results(await self._send("POST", "v1/extract", body, _json), len(texts))

    async def stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        labels: Labels,
        threshold: Threshold = 0.5,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
    ) -> AsyncIterator[list[Entity] | TextError]:
        """As `Client.stream`."""
        question = _question(labels, threshold, nested, multi_label, model)
        answered = 0
        ahead: deque[asyncio.Task[list[list[Entity] | TextError]]] = deque()
        try:
            async for chunk in _async_chunks(texts):
                ahead.append(asyncio.create_task(self._send_chunk(question, chunk)))
                if len(ahead) > _CHUNKS_AHEAD:
                    for result in await ahead.popleft():
                        yield _placed(result, answered)
                        answered += 1
            while ahead:
                for result in await ahead.popleft():
                    yield _placed(result, answered)
                    answered += 1
        finally:
            for task in ahead:
                task.cancel()

    async def model(self) -> Model:
        """As `Client.model`."""
        return _model(await self._send("GET", "v1/model", None, _json))

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("ready", timeout=self._seconds)).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_chunk(self, question: dict[str, Any], texts: list[str]) -> list[list[Entity] | TextError]:
        return await self._send("POST", "v1/extract/stream", _lines(question, texts), _streamed(len(texts)))

    async def _send(self, method: str, path: str, body: str | None, read: Callable[[httpx.Response], _T]) -> _T:
        attempts = _Attempts(self._seconds)
        while True:
            try:
                response = await self._http.request(
                    method, path, content=body, headers=_type(path), timeout=attempts.left
                )
                return read(response)
            except (_AgainError, httpx.TransportError) as error:
                await asyncio.sleep(attempts.pause(error))


# --- what to send -----------------------------------------------------------------------------------------------------


def _question(
    labels: Labels, threshold: Threshold, nested: bool, multi_label: bool, model: str | None
) -> dict[str, Any]:
    if isinstance(labels, str):
        raise UserError(f"The labels are the single string {shown(labels)}; give a list of names.")
    names: Any = dict(labels) if isinstance(labels, Mapping) else list(labels)
    if isinstance(threshold, Mapping):
        threshold = dict(threshold)
    elif not isinstance(threshold, (int, float)):
        threshold = list(threshold)
    return {"labels": names, "threshold": threshold, "nested": nested, "multi_label": multi_label, "model": model}


def _listed(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserError(f"The texts are the single string {shown(texts)}; give a list of strings.")
    return list(texts)


def _lines(question: dict[str, Any], texts: list[str]) -> str:
    return "".join(json.dumps(line) + "\n" for line in (question, *texts))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk = _Chunk()
    for text in texts:
        if full := chunk.add(text):
            yield full
    if chunk.texts:
        yield chunk.texts


async def _async_chunks(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[list[str]]:
    if not isinstance(texts, AsyncIterable):
        for full in _chunks(texts):
            yield full
        return
    chunk = _Chunk()
    async for text in texts:
        if full_chunk := chunk.add(text):
            yield full_chunk
    if chunk.texts:
        yield chunk.texts


class _Chunk:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self._bytes = 0

    def add(self, text: str) -> list[str] | None:
        """The texts before this one, where it would not fit beside them."""
        size = len(json.dumps(text)) + 1
        full = self.texts if self.texts and self._bytes + size > _CHUNK_BYTES else None
        if full is not None:
            self.texts, self._bytes = [], 0
        self.texts.append(text)
        self._bytes += size
        return full


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _type(path: str) -> dict[str, str]:
    return {"Content-Type": _NDJSON if path.endswith("/stream") else _JSON}


def _checked(seconds: float) -> float:
    if not seconds > 0:
        raise UserError(f"The deadline of {shown(seconds)} seconds is none; give a number above 0.")
    return seconds


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"The server's address {shown(url)} is no URL; it begins with http:// or https://.")
    return url


# --- what comes back --------------------------------------------------------------------------------------------------


class _AgainError(Exception):
    """An answer that says no more than that another attempt may have one."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Attempts:
    """When to ask again: after the time that the server names, or pauses that double, with a random part so that
    callers who failed together do not come back together.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._count = 0

    @property
    def left(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def pause(self, error: Exception) -> float:
        """Seconds to wait. Raises `NoAnswerError` where the deadline would pass meanwhile."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._count)
        self._count += 1
        asked = getattr(error, "retry_after", None)
        seconds = random.uniform(0, longest) if asked is None else asked + random.uniform(0, max(1.0, asked) / 4)
        if seconds >= self.left:
            raise NoAnswerError(
                f"The server gave no answer within {self._seconds:g} s, after {self._count} attempts "
                f"({one_line(error) or type(error).__name__}); try again later."
            ) from error
        return seconds


def _json(response: httpx.Response) -> Any:
    """The body of an answer. Raises `RefusedError`, or `_AgainError` where it says to ask again."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success:
        if body is None:
            raise _AgainError(f"the answer with status {response.status_code} is no JSON")
        return body
    error = body.get("error") if isinstance(body, dict) else None
    ours = isinstance(error, dict) and "message" in error
    # An error that is not the server's own comes from what stands before it, and says that the server is gone.
    wait = _retry_after(response)
    if response.status_code in _BUSY or wait is not None or (response.status_code >= 500 and not ours):
        raise _AgainError(str(error["message"]) if error and ours else f"status {response.status_code}", wait)
    if not error or not ours:
        status, url = response.status_code, response.url
        raise NoAnswerError(f"The server answered with status {status}; is {url} a Spanlake server?")
    if response.status_code >= 500:
        raise NoAnswerError(str(error["message"]))
    raise RefusedError(response.status_code, str(error.get("type")), str(error["message"]))


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # or a date, which our servers never send
        return None


def _streamed(count: int) -> Callable[[httpx.Response], list[list[Entity] | TextError]]:
    """Reads the answer to a stream of `count` texts: `_AgainError` where it does not reach its last line."""

    def read(response: httpx.Response) -> list[list[Entity] | TextError]:
        if not response.is_success:
            _json(response)
        try:
            lines = [json.loads(line) for line in response.text.split("\n") if line]
        except ValueError:
            raise _AgainError("the stream broke off within a line") from None
        if not lines or lines[-1] != {"done": True, "texts": count}:
            error = lines[-1].get("error") if lines and "index" not in lines[-1] else None
            if error and error["type"] not in _BUSY_KINDS:
                raise RefusedError(response.status_code, error["type"], error["message"])
            raise _AgainError(error["message"] if error else "the stream broke off")
        return [
            [Entity(**entity) for entity in line["entities"]]
            if "entities" in line
            else TextError(line["index"], line["error"]["type"], line["error"]["message"])
            for line in lines
            if "index" in line
        ]

    return read


def _placed(result: list[Entity] | TextError, index: int) -> list[Entity] | TextError:
    """A text's index in its chunk -> in the stream."""
    if isinstance(result, TextError):
        message = str(result).removeprefix(f"Text {result.index}: ")
        return TextError(index, result.kind, message)
    return result


def _results(body: Any, count: int) -> list[list[Entity]]:
    found = [None if each is None else [Entity(**entity) for entity in each] for each in body["results"]]
    if len(found) != count:
        raise NoAnswerError(f"The server answered {len(found)} of {count} texts.")
    errors = [TextError(error["index"], error["type"], error["message"]) for error in body.get("errors") or []]
    answered = [each for each in found if each is not None]
    if errors or len(answered) < count:
        raise PartialError(found, errors)
    return answered


def _model(body: Any) -> Model:
    return Model(body["name"], body["fingerprint"])
