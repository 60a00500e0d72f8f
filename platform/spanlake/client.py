"""A Python client for a Spanlake server.

An answer depends on the request alone, so the client repeats a failed request until the deadline. It repeats where the
server is busy, starting or gone, and where the connection breaks before the last byte.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError, one_line, shown
from spanlake.labels import Labels, Threshold

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds
_BUSY = (429, 502, 503)
_BUSY_KINDS = ("overloaded", "unavailable", "deadline")  # the same inside a stream, whose status is already sent
_JSON, _NDJSON = "application/json", "application/x-ndjson"
_CHUNK_BYTES = 48 << 10  # of a stream in one request; small, because httpx sends all of it before it reads the answer
_CHUNKS_AHEAD = 2
_COMPRESSION = 4  # of 1 to 9; a higher level takes longer and saves little of JSON

_T = TypeVar("_T")
_Answer = TypeVar("_Answer", list[Entity], str)


class RefusedError(UserError):
    """The server refused the request. `status` and `kind` come from its answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class NoAnswerError(ShortfallError):
    """No answer came before the deadline, or the answer does not come from a Spanlake server."""


class TextError(ShortfallError):
    """The server could not answer this text, but answered others."""

    def __init__(self, index: int, kind: str, message: str) -> None:
        super().__init__(f"Text {index}: {message}")
        self.index = index
        self.kind = kind


class PartialError(ShortfallError):
    """Some texts of a request have no answer. `results` holds None for each of them; `errors` holds the reasons.

    The other results are entities or, from `redact`, redacted texts.
    """

    def __init__(self, results: Sequence[list[Entity] | str | None], errors: list[TextError]) -> None:
        super().__init__(f"{len(errors)} of {len(results)} texts could not be answered; the first: {errors[0]}")
        self.results = results
        self.errors = errors


@dataclass(frozen=True)
class Model:
    """The model that answers. `fingerprint` is the SHA-256 of everything that determines its answers."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class ModelAbout:
    """What a model of the server is good at, as far as its operator and its package say."""

    name: str
    description: str | None
    labels: list[str]  # that it was trained on; it reads any others too
    scores: dict[str, float]  # F1 in percent, by the set that was scored
    license: str | None
    is_loaded: bool


class Client:
    """Asks a server, one call at a time or as a stream. Threads may share it.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.extract(["Alain Farley works at McGill University"], ["person", "organization"])
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        seconds: float = 60,
        compress: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Takes the address of the server; the first call connects to it.

        A call, or a part of a stream, fails after `seconds`; this includes all repeated requests. `compress` sends
        requests as gzip, for a slow network; answers come as gzip anyway. `transport` sends the requests, for callers
        that have proxies or certificates of their own.

        Raises `UserError` where `url` is not a URL or `seconds` is not above 0.
        """
        self._seconds = _checked(seconds)
        self._compress = compress
        self._http = httpx.Client(base_url=_checked_url(url), headers=_headers(api_key), transport=transport)

    def extract(
        self,
        texts: Sequence[str],
        labels: Labels | Sequence[Labels],
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> list[list[Entity]]:
        """Returns the entities of each text, in the order of the texts. The arguments are those of `Extractor.extract`,
        but `rules` is the name of rules that the server has.

        Raises `RefusedError` where the server does not accept the request, `PartialError` where it answers only some of
        the texts, and `NoAnswerError` where it answers none of them in time.
        """
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
        body = json.dumps({"texts": _listed(texts), **question})
        return _results(self._send("POST", "v1/extract", body, _json), len(texts))

    def stream(
        self,
        texts: Iterable[str],
        labels: Labels,
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> Iterator[list[Entity] | TextError]:
        """Yields, for each text in turn, its entities or the error that says why it has no answer.

        The number of texts read ahead is bounded. Raises as `extract` does.
        """
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
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

    def redact(
        self,
        texts: Sequence[str],
        labels: Labels | Sequence[Labels],
        style: Literal["label", "hash", "mask", "surrogate"] = "label",
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> list[str]:
        """Returns the texts with their entities replaced.

        They are replaced by `[LABEL]`, by `[LABEL:keyed hash]`, by a fixed mask, or by made-up values (surrogates).

        The key is the server's. Raises as `extract` does.
        """
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
        body = json.dumps({"texts": _listed(texts), **question, "redact": style})
        return _redacted(self._send("POST", "v1/extract", body, _json), len(texts))

    def models(self) -> list[ModelAbout]:
        """Returns the models that calls may name, the default first. Raises as `extract` does."""
        return _abouts(self._send("GET", "v1/models", None, _json))

    def model(self) -> Model:
        """Returns the model that answers calls without a `model`. Raises as `extract` does."""
        return _model(self._send("GET", "v1/model", None, _json))

    def is_ready(self) -> bool:
        """Returns whether the server's model is ready to answer. Asks once."""
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
        content = _content(path, body, self._compress)
        while True:
            try:
                return read(self._http.request(method, path, **content, timeout=attempts.left))
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
        compress: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Takes the arguments of `Client`."""
        self._seconds = _checked(seconds)
        self._compress = compress
        self._http = httpx.AsyncClient(base_url=_checked_url(url), headers=_headers(api_key), transport=transport)

    async def extract(
        self,
        texts: Sequence[str],
        labels: Labels | Sequence[Labels],
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> list[list[Entity]]:
        """Does what `Client.extract` does."""
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
        body = json.dumps({"texts": _listed(texts), **question})
        return _results(await self._send("POST", "v1/extract", body, _json), len(texts))

    async def stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        labels: Labels,
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> AsyncIterator[list[Entity] | TextError]:
        """Does what `Client.stream` does."""
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
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

    async def redact(
        self,
        texts: Sequence[str],
        labels: Labels | Sequence[Labels],
        style: Literal["label", "hash", "mask", "surrogate"] = "label",
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        model: str | None = None,
        rules: str | None = None,
        join_adjacent: bool = False,
    ) -> list[str]:
        """Does what `Client.redact` does."""
        question = _question(labels, threshold, nested, multi_label, model, rules, join_adjacent)
        body = json.dumps({"texts": _listed(texts), **question, "redact": style})
        return _redacted(await self._send("POST", "v1/extract", body, _json), len(texts))

    async def models(self) -> list[ModelAbout]:
        """Does what `Client.models` does."""
        return _abouts(await self._send("GET", "v1/models", None, _json))

    async def model(self) -> Model:
        """Does what `Client.model` does."""
        return _model(await self._send("GET", "v1/model", None, _json))

    async def is_ready(self) -> bool:
        """Does what `Client.is_ready` does."""
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
        content = _content(path, body, self._compress)
        while True:
            try:
                return read(await self._http.request(method, path, **content, timeout=attempts.left))
            except (_AgainError, httpx.TransportError) as error:
                await asyncio.sleep(attempts.pause(error))


# --- what to send -----------------------------------------------------------------------------------------------------


def _question(
    labels: Labels | Sequence[Labels],
    threshold: Threshold | None,
    nested: bool,
    multi_label: bool,
    model: str | None,
    rules: str | None,
    join_adjacent: bool,
) -> dict[str, Any]:
    if isinstance(labels, str):
        raise UserError(f"The labels are the single string {shown(labels)}; give a list of names.")
    names: Any = dict(labels) if isinstance(labels, Mapping) else [_plain(each) for each in labels]
    if isinstance(threshold, Mapping):
        threshold = dict(threshold)
    elif not isinstance(threshold, (int, float, type(None))):
        threshold = list(threshold)
    given = {"threshold": threshold, "rules": rules}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if join_adjacent:  # a server that does not know it refuses it
        asked["join_adjacent"] = True
    return {"labels": names, **asked, "nested": nested, "multi_label": multi_label, "model": model}


def _plain(labels: str | Labels) -> Any:
    """Returns a name as it is, or the labels of one text in a form that JSON has."""
    if isinstance(labels, str):
        return labels
    return dict(labels) if isinstance(labels, Mapping) else list(labels)


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
        """Adds a text. Returns the texts before it where the chunk is full, and begins a new chunk with this text."""
        size = len(json.dumps(text)) + 1
        full = self.texts if self.texts and self._bytes + size > _CHUNK_BYTES else None
        if full is not None:
            self.texts, self._bytes = [], 0
        self.texts.append(text)
        self._bytes += size
        return full


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _content(path: str, body: str | None, compress: bool) -> dict[str, Any]:
    """Returns what httpx needs to send a body."""
    headers = {"Content-Type": _NDJSON if path.endswith("/stream") else _JSON}
    if body is None or not compress:
        return {"content": body, "headers": headers}
    packed = gzip.compress(body.encode(), _COMPRESSION)
    return {"content": packed, "headers": headers | {"Content-Encoding": "gzip"}}


def _checked(seconds: float) -> float:
    if not seconds > 0:
        raise UserError(f"The deadline is {shown(seconds)} seconds; give a number above 0.")
    return seconds


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"The server's address {shown(url)} is not a URL; begin it with http:// or https://.")
    return url


# --- what comes back --------------------------------------------------------------------------------------------------


class _AgainError(Exception):
    """This attempt failed, and another one may succeed."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Attempts:
    """Decides when to ask again: after the time that the server names, or after pauses that double.

    Each pause has a random part, so that callers who failed together do not come back together.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._count = 0

    @property
    def left(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def pause(self, error: Exception) -> float:
        """Returns the seconds to wait. Raises `NoAnswerError` where the deadline would pass in that time."""
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
    """Returns the body of an answer.

    Raises `RefusedError` where the server refuses, `_AgainError` where another attempt may succeed, and `NoAnswerError`
    where the server fails or is not a Spanlake server.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success:
        if body is None:
            raise _AgainError(f"the answer with status {response.status_code} is not JSON")
        return body
    error = body.get("error") if isinstance(body, dict) else None
    ours = isinstance(error, dict) and "message" in error
    # An error without our fields comes from a proxy in front of the server, and means that the server is gone.
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
    except (KeyError, ValueError):  # absent, or a date, which our servers never send
        return None


def _streamed(count: int) -> Callable[[httpx.Response], list[list[Entity] | TextError]]:
    """Returns a function that reads the answer to a stream of `count` texts.

    The function raises `_AgainError` where the answer breaks off before its last line.
    """

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
    """Returns the result with the index of its text in the stream in place of the index in its chunk."""
    if isinstance(result, TextError):
        message = str(result).removeprefix(f"Text {result.index}: ")
        return TextError(index, result.kind, message)
    return result


def _results(body: Any, count: int) -> list[list[Entity]]:
    found = [None if each is None else [Entity(**entity) for entity in each] for each in body["results"]]
    return _whole(found, body, count)


def _redacted(body: Any, count: int) -> list[str]:
    if "redacted" not in body:
        raise NoAnswerError("The server answered without redacted texts; it has an older version of Spanlake.")
    return _whole(body["redacted"], body, count)


def _whole(found: Sequence[_Answer | None], body: Any, count: int) -> list[_Answer]:
    if len(found) != count:
        raise NoAnswerError(f"The server answered {len(found)} of {count} texts.")
    errors = [TextError(error["index"], error["type"], error["message"]) for error in body.get("errors") or []]
    answered = [each for each in found if each is not None]
    if errors or len(answered) < count:
        raise PartialError(found, errors)
    return answered


def _abouts(body: Any) -> list[ModelAbout]:
    names = [field.name for field in fields(ModelAbout)]
    return [ModelAbout(**{name: each[name] for name in names}) for each in body["about"]]


def _model(body: Any) -> Model:
    return Model(body["name"], body["fingerprint"])
