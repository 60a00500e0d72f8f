"""A client for the chat endpoints of language models, all those that speak OpenAI's protocol."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from spanlake.errors import ShortfallError, UserError, one_line, shown

Message = Mapping[str, str]  # role, content

_ATTEMPTS = 6  # at one question
_LONGEST_PAUSE = 60.0  # seconds
_AGAIN = (408, 409, 425, 429)  # and every status from 500 up
_MOST_UNANSWERED = 20  # questions in a row
_SETTINGS = {"temperature": 0, "max_tokens": 4096}  # of a question; some models accept only one of them, or neither
_CHARACTERS_OF_TOKEN = 4  # where an endpoint does not count tokens


class EndpointError(ShortfallError):
    """The endpoint answers no question any more."""


class UnansweredError(ShortfallError):
    """The endpoint has no answer to this question; it may have answers to others."""


@dataclass(frozen=True)
class Endpoint:
    """A model at an address, and how to ask it. `key` is a secret: no message holds it."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8  # questions at a time
    seconds: float = 120.0  # for one attempt
    first_pause: float = 0.5  # seconds; the pauses between attempts double

    @property
    def shown(self) -> str:
        """Returns the address without its query, which may hold a secret."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in any currency."""

    prompt: float
    completion: float


@dataclass
class Usage:
    """What a run has asked for. `estimated`: some answers did not say how many tokens they are."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def cost(self, price: Price) -> float:
        return (self.prompt_tokens * price.prompt + self.completion_tokens * price.completion) / 1e6

    def add(self, other: Usage) -> None:
        self.answers += other.answers
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.estimated |= other.estimated

    def to_dict(self, price: Price | None = None) -> dict[str, Any]:
        cost = {} if price is None else {"cost": round(self.cost(price), 6)}
        return {**vars(self), **cost}

    def sentence(self, price: Price | None = None) -> str:
        estimated = ", estimated" if self.estimated else ""
        cost = "" if price is None else f", cost {self.cost(price):.4f}"
        return f"{self.prompt_tokens:,} tokens asked and {self.completion_tokens:,} answered{estimated}{cost}"


@dataclass(frozen=True)
class Reply:
    text: str
    cut: bool  # the model had more to say
    usage: Usage


def endpoint_at(url: str, model: str, key_variable: str | None = None, **settings: Any) -> Endpoint:
    """Returns an endpoint whose key is in an environment variable, by default OPENAI_API_KEY, which may be absent.

    Raises `UserError` for an address that is no URL or holds a password, and for a variable that is named and not set.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"The endpoint is not a URL ({one_line(error)}); give one like http://host:8000/v1.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"The endpoint {shown(url)} is not a URL; give one like http://host:8000/v1.")
    if parsed.userinfo:
        raise UserError("The endpoint's URL holds a password; put the key into an environment variable instead.")
    if not model.strip():
        raise UserError("The name of the model is empty; give the name that the endpoint knows it by.")
    key = os.environ.get(key_variable or "OPENAI_API_KEY", "").strip()
    if key_variable and not key:
        raise UserError(f"The environment variable {key_variable} holds no key; set it, or leave out --key-variable.")
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"The key in {key_variable or 'OPENAI_API_KEY'} has characters that no header can hold; set it again."
        )
    return Endpoint(url, model, key or None, **settings)


class Chat:
    """Asks an endpoint, from one event loop. `usage` counts the answers."""

    def __init__(self, endpoint: Endpoint) -> None:
        url = httpx.URL(endpoint.url)
        path = url.path.rstrip("/")
        self._url = url if path.endswith("/chat/completions") else url.copy_with(path=f"{path}/chat/completions")
        self._endpoint = endpoint
        self._settings: dict[str, Any] = dict(_SETTINGS)
        self._unanswered = 0  # in a row
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=endpoint.seconds,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )
        self.usage = Usage()

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message]) -> Reply:
        """Returns the answer to a conversation. Repeats the question where the endpoint is busy, slow or broken.

        Raises `UnansweredError` where this question has no answer, `EndpointError` where the endpoint is down, and
        `UserError` where it does not accept the key or does not know the model.
        """
        try:
            reply = await self._ask(messages)
        except UnansweredError as error:
            self._unanswered += 1
            if self._unanswered >= _MOST_UNANSWERED:
                raise EndpointError(
                    f"The endpoint {self._endpoint.shown} answered none of the last {_MOST_UNANSWERED} questions "
                    f"({one_line(error)}); run the command again when it answers."
                ) from error
            raise
        self._unanswered = 0
        self.usage.add(reply.usage)
        return reply

    async def _ask(self, messages: Sequence[Message]) -> Reply:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._attempt(messages)
            except (_AgainError, httpx.RequestError) as error:
                failure: Exception = error
            if attempt + 1 < _ATTEMPTS:
                await asyncio.sleep(self._pause(attempt, failure))
        reason = one_line(failure) if str(failure) else type(failure).__name__
        if isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout)):
            raise EndpointError(
                f"The endpoint {self._endpoint.shown} cannot be reached ({reason}); start it, or give its address."
            ) from failure
        raise UnansweredError(f"no answer in {_ATTEMPTS} attempts: {reason}") from failure

    async def _attempt(self, messages: Sequence[Message]) -> Reply:
        settings = dict(self._settings)
        body = {"model": self._endpoint.model, "messages": [dict(message) for message in messages], **settings}
        response = await self._http.post(self._url, json=body)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success:
            return _reply(answer, messages)
        said = self._said(answer, response.status_code)
        status = response.status_code
        if status in _AGAIN or status >= 500:
            raise _AgainError(said, _retry_after(response))
        refused = [name for name in settings if name in str(_message(answer))]
        if status == 400 and refused:
            for name in refused:
                self._settings.pop(name, None)
            raise _AgainError(said, 0.0)
        if status in (401, 403):
            raise UserError(f"The endpoint {self._endpoint.shown} refuses the key ({said}); set the right one.")
        if status == 404:
            raise UserError(
                f"The endpoint {self._endpoint.shown} does not know the model {shown(self._endpoint.model)}, or is no "
                f"chat endpoint ({said}); correct the model or the address."
            )
        raise UnansweredError(said)

    def _said(self, answer: Any, status: int) -> str:
        """Returns what an error's body says, without the key."""
        message = str(_message(answer) or "")
        if self._endpoint.key:  # before it is shortened, which may leave a part of the key
            message = message.replace(self._endpoint.key, "(the key)")
        return f"status {status}" + (f": {shown(message)}" if message else "")

    def _pause(self, attempt: int, failure: Exception) -> float:
        """Returns seconds to wait. A random part keeps questions that failed together from coming back together."""
        asked = failure.retry_after if isinstance(failure, _AgainError) else None
        if asked is not None:
            return min(asked, _LONGEST_PAUSE) * random.uniform(1.0, 1.25)
        return min(self._endpoint.first_pause * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


class _AgainError(Exception):
    """This attempt failed, and another one may succeed."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def _message(answer: Any) -> Any:
    """Returns what an error's body says; None where it says nothing."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return error.get("message") if isinstance(error, dict) else error


def _reply(answer: Any, messages: Sequence[Message]) -> Reply:
    """Reads an answer. Raises `_AgainError` where it has no message."""
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise _AgainError("the answer is not that of a chat endpoint") from None
    if isinstance(content, list):  # parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    stated = answer.get("usage")
    usage = _usage(stated if isinstance(stated, dict) else {}, messages, text)
    return Reply(text, choice.get("finish_reason") == "length", usage)


def _usage(stated: Any, messages: Sequence[Message], text: str) -> Usage:
    prompt, completion = (stated.get(f"{part}_tokens") for part in ("prompt", "completion")) if stated else (None, None)
    if type(prompt) is int and type(completion) is int and prompt >= 0 and completion >= 0:
        return Usage(1, prompt, completion)
    asked = sum(len(message["content"]) for message in messages)
    prompt, completion = (math.ceil(size / _CHARACTERS_OF_TOKEN) for size in (asked, len(text)))
    return Usage(1, prompt, completion, estimated=True)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):  # absent, or a date
        return None
    return seconds if 0 <= seconds < math.inf else None
