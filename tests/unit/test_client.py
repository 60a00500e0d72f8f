"""Tests the client with the real application under uvicorn, and with servers that fail in every way they can."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from spanlake import Entity, Extractor
from spanlake.client import AsyncClient, Client, NoAnswerError, PartialError, RefusedError, TextError
from spanlake.errors import UserError
from spanlake.redaction import Redaction

TEXTS = [
    "Ada met Alain at McGill University in Montreal",
    "",
    "\U0001f30a Marie Curie found radium\u2028in Warsaw",
    "x" * 300,
]
LABELS = ["person", "place"]


@pytest.fixture(scope="module")
def url(tiny_model_dir: Path, serve_app: Callable[..., str]) -> str:
    return serve_app({"model": str(tiny_model_dir), "limits": {"text_characters": 2000}})


@pytest.fixture(scope="module")
def expected(tiny_model_dir: Path) -> list[list[Entity]]:
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    return extractor.extract(TEXTS, LABELS, 0.4, nested=True)


def test_extract_gives_what_the_extractor_gives(url: str, expected: list[list[Entity]]):
    with Client(url) as client:
        assert same(client.extract(TEXTS, LABELS, 0.4, nested=True), expected)
        assert any(expected)
        assert client.model().name == "tiny"
        assert client.is_ready()


def test_labels_of_each_text_and_redaction(url: str, tiny_model_dir: Path):
    own = [["person"], {"where": "place"}, ("place",), ["person"]]
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    expected = extractor.extract(TEXTS, own, 0.4)
    redacted = [Redaction("mask").text(text, found) for text, found in zip(TEXTS, expected, strict=True)]

    async def ask() -> list[str]:
        async with AsyncClient(url, compress=True) as client:
            assert [model.name for model in await client.models()] == ["tiny"]
            return await client.redact(TEXTS, own, "mask", 0.4)

    with Client(url) as client:
        assert same(client.extract(TEXTS, own, 0.4), expected)
        assert client.redact(TEXTS, own, "mask", 0.4) == asyncio.run(ask()) == redacted != TEXTS


def test_async_extract_gives_what_the_extractor_gives(url: str, expected: list[list[Entity]]):
    async def ask() -> list[list[Entity]]:
        async with AsyncClient(url) as client:
            assert (await client.model()).name == "tiny"
            assert await client.is_ready()
            return await client.extract(TEXTS, dict.fromkeys(LABELS, "person"), [0.4, 0.4], nested=True)

    assert len(asyncio.run(ask())) == len(expected)


@pytest.mark.slow
def test_streams_of_many_texts_keep_their_order(url: str, expected: list[list[Entity]]):
    count = 300  # several requests: they hold 48 KiB each

    async def ask() -> list[list[Entity] | TextError]:
        async with AsyncClient(url) as client:
            return [result async for result in client.stream(TEXTS * count, LABELS, 0.4, nested=True)]

    with Client(url) as client:
        streamed = list(client.stream(iter(TEXTS * count), LABELS, 0.4, nested=True))
    assert same(streamed, expected * count)
    assert same(asyncio.run(ask()), expected * count)


def test_a_stream_reads_a_bounded_way_ahead(url: str):
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for _ in range(10_000):
            read += 1
            yield "Ada met Alain in London. " * 40  # 1 KB

    with Client(url) as client:
        stream = client.stream(texts(), LABELS)
        next(stream)
        assert read < 500
        stream.close()


def test_a_refused_request_raises_the_servers_error(url: str):
    with Client(url) as client:
        with pytest.raises(RefusedError, match="threshold") as refused:
            client.extract(["Ada"], LABELS, 1.5)
        assert (refused.value.status, refused.value.kind) == (422, "invalid")
        with pytest.raises(RefusedError) as refused:
            client.extract(["Ada"], LABELS, model="absent")
        assert refused.value.status == 404
        with pytest.raises(RefusedError) as refused:
            client.extract(["x" * 2001], LABELS)
        assert refused.value.status == 413


def test_wrong_calls_never_reach_a_server():
    with pytest.raises(UserError, match="single string"):
        Client("http://127.0.0.1:1").extract("Ada", LABELS)
    with pytest.raises(UserError, match="single string"):
        Client("http://127.0.0.1:1").extract(["Ada"], "person")
    with pytest.raises(UserError, match="not a URL"):
        Client("127.0.0.1:8000")
    with pytest.raises(UserError, match="0 seconds"):
        Client("http://127.0.0.1:1", seconds=0)


GOOD = {"model": {"name": "m", "fingerprint": "f"}, "results": [[]]}
ERROR = {"error": {"type": "overloaded", "message": "The queue is full."}}
FAILURES: dict[str, Callable[[], httpx.Response]] = {
    "busy": lambda: httpx.Response(429, json=ERROR, headers={"Retry-After": "0"}),
    "starting": lambda: httpx.Response(503, json=ERROR),
    "late": lambda: httpx.Response(504, json=ERROR, headers={"Retry-After": "0"}),
    "a proxy's own error": lambda: httpx.Response(500, text="Internal Server Error"),
    "half an answer": lambda: httpx.Response(200, text='{"model": {"na'),
    "no connection": lambda: raise_(httpx.ConnectError("refused")),
    "broken connection": lambda: raise_(httpx.RemoteProtocolError("closed without an answer")),
}


def raise_(error: Exception) -> httpx.Response:
    raise error


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_request_is_repeated(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spanlake.client._FIRST_PAUSE", 0.001)
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return FAILURES[kind]() if asked < 3 else httpx.Response(200, json=GOOD)

    async def ask() -> list[list[Entity]]:
        async with AsyncClient("http://server", transport=httpx.MockTransport(answer)) as client:
            return await client.extract(["Ada"], LABELS)

    assert Client("http://server", transport=httpx.MockTransport(answer)).extract(["Ada"], LABELS) == [[]]
    assert asked == 3
    asked = 0
    assert asyncio.run(ask()) == [[]]
    assert asked == 3


def test_the_client_waits_as_long_as_the_server_says(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    answers = [httpx.Response(429, json=ERROR, headers={"Retry-After": "4"}), httpx.Response(200, json=GOOD)]
    client = Client("http://server", transport=httpx.MockTransport(lambda request: answers.pop(0)))
    assert client.extract(["Ada"], LABELS) == [[]]
    assert len(pauses) == 1 and 4 <= pauses[0] <= 5


def test_a_deadline_ends_the_attempts():
    busy = httpx.MockTransport(lambda request: httpx.Response(429, json=ERROR, headers={"Retry-After": "30"}))
    with pytest.raises(NoAnswerError, match="within 2 s, after 1 attempts .The queue is full"):
        Client("http://server", seconds=2, transport=busy).extract(["Ada"], LABELS)


def test_the_error_asks_whether_the_url_is_a_spanlake_server():
    other = httpx.MockTransport(lambda request: httpx.Response(404, text="<html>"))
    with pytest.raises(NoAnswerError, match="status 404; is http://server/v1/extract a Spanlake server"):
        Client("http://server", transport=other).extract(["Ada"], LABELS)


def test_a_text_without_an_answer_keeps_the_other_answers():
    error = {"index": 1, "type": "internal", "message": "It failed."}
    body = {**GOOD, "results": [[], None], "errors": [error]}
    client = Client("http://server", transport=httpx.MockTransport(lambda request: httpx.Response(200, json=body)))
    with pytest.raises(PartialError, match="1 of 2 texts") as partial:
        client.extract(["Ada", "Alain"], LABELS)
    assert partial.value.results == [[], None]
    assert partial.value.errors[0].index == 1


def test_a_broken_stream_is_repeated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spanlake.client._FIRST_PAUSE", 0.001)
    whole = [{"model": GOOD["model"]}, {"index": 0, "entities": []}, {"index": 1, "error": ERROR["error"]}]
    done = {"done": True, "texts": 2}
    answers = [lines(*whole[:2]), lines(*whole), lines(whole[0], ERROR), lines(*whole, done)]
    asked = iter(answers)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=next(asked)))
    results = list(Client("http://server", transport=transport).stream(["Ada", "Alain"], LABELS))
    assert results[0] == []
    assert isinstance(results[1], TextError) and str(results[1]) == "Text 1: The queue is full."


def test_the_key_is_sent_with_every_request():
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json=GOOD)

    Client("http://server", api_key="secret", transport=httpx.MockTransport(answer)).extract(["Ada"], LABELS)
    assert seen == ["Bearer secret"]


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def same(found: object, expected: list[list[Entity]]) -> bool:
    """Checks that the entities are equal; scores may differ by rounding."""
    assert isinstance(found, list) and len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [(e.start, e.end, e.text, e.label) for e in one] == [(e.start, e.end, e.text, e.label) for e in other]
        assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-5)
    return True
