"""No request makes the server fail: what the API's own description allows, and what nobody would send."""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanlake.serving.app import make_app
from spanlake.serving.config import read_config
from spanlake.serving.service import Service

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
LIMITS = {"body_bytes": 20_000, "stream_bytes": 20_000, "texts": 20, "labels": 10, "text_characters": 2000}


@schemathesis.serializer("application/x-ndjson")
def stream_of(context: Any, question: Any) -> bytes:
    """A stream with two texts."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in (question, "Ada met Alain", {"text": "in London"}))


class Server:
    """The application in this process, on an event loop of its own."""

    def __init__(self, model: Path) -> None:
        self._loop = asyncio.new_event_loop()
        config = read_config({"model": str(model), "device": "cpu", "precision": "float32", "limits": LIMITS})
        self._service = self.run(Service.load(config))
        self.app = make_app(self._service, config)

    def run(self, work: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(work)

    def send(self, method: str, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, content=content, headers=headers)

        return self.run(ask())

    def close(self) -> None:
        self.run(self._service.close(5))
        self._loop.close()


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    server = Server(tiny_model_dir)
    yield server
    server.close()


@pytest.mark.slow
def test_no_request_that_the_description_allows_fails(server: Server):
    description = server.send("GET", "/openapi.json", b"", {}).json()
    operations = [each.ok() for each in schemathesis.openapi.from_dict(description).get_all_operations()]
    described = {"/v1/extract", "/v1/extract/stream", "/v1/model", "/v1/models", "/health", "/ready"}
    assert {operation.path for operation in operations} == described
    for operation in operations:
        answered = send_all(server, operation)
        assert 200 in answered, operation.label


def send_all(server: Server, operation: Any) -> set[int]:
    """Sends what Schemathesis makes of an operation's description; returns the statuses."""
    answered = set()

    @given(case=operation.as_strategy())
    @settings(max_examples=60, deadline=None, suppress_health_check=QUIET, database=None)
    def send(case: schemathesis.Case) -> None:
        sent = case.as_transport_kwargs(base_url="http://server")
        body = sent["json"] if "json" in sent else sent.get("data", b"")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = server.send(case.method, case.formatted_path, content, dict(sent["headers"]))
        check(response)
        answered.add(response.status_code)

    send()
    return answered


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(["texts", "labels", "threshold", "nested", "multi_label", "model", "other"])
near = st.fixed_dictionaries(
    {"texts": st.lists(st.text(max_size=60), max_size=3) | values, "labels": st.just(["person"]) | values},
    optional={"threshold": values, "nested": values, "multi_label": values, "model": values},
)
bodies = st.one_of(
    st.binary(max_size=300),
    near.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(fields, values, max_size=4).map(lambda value: json.dumps(value).encode()),
    st.lists(near | values, max_size=4).map(lambda lines: b"\n".join(json.dumps(line).encode() for line in lines)),
    st.sampled_from(
        [b"[" * 15_000, b'{"texts":' * 1500, b"9" * 15_000, b'{"threshold":1e999}', b'{"texts":["\\ud800"]}']
    ),
)
types = st.sampled_from(["application/json", "application/x-ndjson", "application/json; charset=utf-8"]) | st.text(
    st.characters(min_codepoint=32, max_codepoint=126), max_size=20
)


@pytest.mark.slow
@given(body=bodies, kind=types, path=st.sampled_from(["/v1/extract", "/v1/extract/stream"]))
@settings(max_examples=400, deadline=None, suppress_health_check=QUIET)
def test_no_body_makes_the_server_fail(server: Server, body: bytes, kind: str, path: str):
    check(server.send("POST", path, body, {"Content-Type": kind}))


parts = (
    "v1 extract stream model models page docs openapi.json metrics health ready .. %2e%2e ..%2f..%2fapp.py app.py %00"
)
segments = st.sampled_from(parts.split()) | st.text(
    st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8
)


@given(
    path=st.lists(segments, max_size=4).map("/".join),
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
def test_no_path_makes_the_server_fail_or_show_its_files(server: Server, path: str, method: str):
    response = server.send(method, f"/{path}", b"", {})
    assert response.status_code < 500, (method, path, response.text)
    assert "from __future__" not in response.text  # which begins every source file


@given(
    text=st.text(max_size=200),
    labels=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4),
    threshold=st.floats(0, 1),
    nested=st.booleans(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
def test_every_entity_is_its_place_in_the_text(
    server: Server, text: str, labels: list[str], threshold: float, nested: bool
):
    body = json.dumps({"texts": [text], "labels": labels, "threshold": threshold, "nested": nested}).encode()
    response = server.send("POST", "/v1/extract", body, {"Content-Type": "application/json"})
    check(response)
    if response.status_code == 200:
        [entities] = response.json()["results"]
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities)


def test_the_check_sees_a_failure():
    with pytest.raises(AssertionError):
        check(httpx.Response(500, json={"error": {"type": "internal", "message": "It failed."}}))


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["type"] and error["message"].endswith(".")
    elif response.headers["content-type"] == "application/x-ndjson":
        lines = [json.loads(line) for line in response.text.split("\n") if line]
        assert "done" in lines[-1] or lines[-1]["error"]["type"] in ("malformed", "invalid", "too_large"), lines[-1]
