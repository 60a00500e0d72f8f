"""The HTTP API over a real socket, without Ray: answers equal the Extractor's, and every refusal has one form."""

import asyncio
import base64
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from spanlake import Entity, Extractor
from spanlake.serving.app import make_app
from spanlake.serving.body import decode_json
from spanlake.serving.config import Limits, ServeConfig, read_config
from spanlake.serving.encoding import answer_json
from spanlake.serving.errors import ApiError
from spanlake.serving.found import Found
from spanlake.serving.keys import Keys, add_key, read_keys
from spanlake.serving.middleware import RequestRecord
from spanlake.serving.queue import Rate
from spanlake.serving.schema import ExtractRequest, ModelName, parse
from spanlake.serving.service import Answer, Service

LABELS = ["person", "university", "city"]
AWKWARD = [
    "",
    " \n\t ",
    "Alain Farley works at McGill University in Montréal, Canada.",
    "Marie Curie 🙂 wrote e\u0301 and \u200b zero width in Geneva",
    "half a pair \ud83d in London",
    "\x00 null and \x1b[31m escapes by Ada",
    "玛丽·居里出生于华沙。阿达·洛夫莱斯住在伦敦。",
    "Ada " * 3000,
    "x" * 5000,
    "Ada met Charles Babbage.\r\n" * 40,
    '{"texts": ["Ada"]} </script><script>alert(1)</script>',
]


@contextmanager
def server(
    config: ServeConfig, keys: Keys | None = None, observe: Callable[[RequestRecord], None] = lambda record: None
) -> Iterator[tuple[httpx.Client, Service]]:
    """The application on a port of its own, while the block lasts."""
    listener = socket.socket()  # uvicorn closes it
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    started: list[Any] = []

    async def run() -> None:
        service = await Service.load(config)
        app = make_app(service, config, keys, [observe])
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        started[:] = [running, service, asyncio.get_running_loop()]
        await running.serve(sockets=[listener])
        await service.close(10)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    deadline = time.monotonic() + 60
    while not (started and started[0].started):
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.02)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            yield client, started[1]
        finally:
            started[0].should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path) -> dict[str, Any]:
    return {"model": str(tiny_model_dir), "device": "cpu", "precision": "float32", "batch_tokens": 512}


@pytest.fixture(scope="module")
def records() -> list[RequestRecord]:
    return []


@pytest.fixture(scope="module")
def running(settings: dict[str, Any], records: list[RequestRecord]) -> Iterator[tuple[httpx.Client, Service]]:
    small = {"body_bytes": 100_000, "texts": 50, "text_characters": 20_000, "labels": 20, "label_characters": 100}
    small["queue_seconds"] = 60  # whatever else the machine does
    with server(read_config(settings | {"limits": small}), observe=records.append) as running:
        yield running


@pytest.fixture
def client(running: tuple[httpx.Client, Service]) -> httpx.Client:
    return running[0]


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def assert_error(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["type"] == kind
    return str(error["message"])


def assert_equal(results: list[Any], expected: list[Any]) -> None:
    for ours, theirs in zip(results, expected, strict=True):
        assert [(e["start"], e["end"], e["text"], e["label"]) for e in ours] == [
            (e.start, e.end, e.text, e.label) for e in theirs
        ]
        assert [e["score"] for e in ours] == pytest.approx([e.score for e in theirs], abs=1e-5)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_answers_under_load_are_the_extractors(client: httpx.Client, extractor: Extractor) -> None:
    rng = random.Random(1)
    questions: list[dict[str, Any]] = [
        {"labels": LABELS, "threshold": 0.3},
        {"labels": {"who": "person", "where": "city"}, "threshold": {"who": 0.2, "where": 0.6}, "nested": True},
        {"labels": [f"type {i}" for i in range(14)], "threshold": 0.45, "multi_label": True},
        {"labels": ["person", "city"], "threshold": [0.1, 0.9]},
    ]
    requests = [{"texts": rng.choices(AWKWARD, k=rng.randint(1, 4)), **rng.choice(questions)} for _ in range(40)]

    def ask(request: dict[str, Any]) -> httpx.Response:
        return client.post("/v1/extract", content=json.dumps(request), headers={"content-type": "application/json"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, requests))
    found = 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["model"] == {"name": "tiny", "fingerprint": extractor.package.fingerprint}
        assert "errors" not in body
        assert_equal(body["results"], extractor.extract(**request))
        found += sum(map(len, body["results"]))
    assert found > 100


def test_no_texts_have_no_results(client: httpx.Client) -> None:
    assert client.post("/v1/extract", json={"texts": [], "labels": ["a"]}).json()["results"] == []


def test_state(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/v1/model").json()["name"] == "tiny"
    listed = client.get("/v1/models").json()
    assert (listed["default"], listed["models"], [each["name"] for each in listed["about"]]) == (
        "tiny",
        ["tiny"],
        ["tiny"],
    )
    document = client.get("/openapi.json").json()
    assert document["paths"]["/v1/extract"]["post"]["requestBody"]["content"]["application/json"]
    assert "ExtractRequest" in client.get("/docs").text


def test_every_answer_has_the_headers_that_keep_a_browser_safe(client: httpx.Client) -> None:
    for path in ("/health", "/nowhere", "/docs", "/"):
        headers = client.get(path, headers={"X-Request-ID": "my-id.1"}).headers
        assert headers["x-request-id"] == "my-id.1"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert len(client.get("/health", headers={"X-Request-ID": "a b"}).headers["x-request-id"]) == 32


# --- refusals ---------------------------------------------------------------------------------------------------------

GOOD = {"texts": ["Ada"], "labels": ["person"]}


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        (b"", 400, "malformed", "not JSON"),
        (b'{"texts": ["Ada"], "labels": ["p"]', 400, "malformed", "not JSON"),
        (b'{"texts": ["\xff"], "labels": ["p"]}', 400, "malformed", "UTF-8"),
        (b'{"texts": ["Ada"], "labels": ["p"], "threshold": NaN}', 400, "malformed", "NaN"),
        (b'{"labels": ["p"], "labels": ["q"], "texts": []}', 400, "malformed", "twice"),
        (b"[" * 50_000, 400, "malformed", "deep"),
        (b'{"threshold": ' + b"1" * 5000 + b"}", 400, "malformed", "not JSON"),
        (b"[]", 422, "invalid", "object"),
        (b'{"texts": "Ada", "labels": ["p"]}', 422, "invalid", "texts"),
        (b'{"texts": ["Ada"], "labels": []}', 422, "invalid", "no labels"),
        (b'{"texts": ["Ada"], "labels": [" "]}', 422, "invalid", "blank"),
        (b'{"texts": ["Ada"], "labels": ["p"], "threshold": 1.5}', 422, "invalid", "1.5"),
        (b'{"texts": ["Ada"], "labels": ["p"], "threshold": 1e999}', 422, "invalid", "inf"),
        (b'{"texts": ["Ada"], "labels": ["p"], "threshold": true}', 422, "invalid", "threshold"),
        (b'{"texts": ["Ada"], "labels": ["p"], "nested": 1}', 422, "invalid", "nested"),
        (b'{"texts": ["Ada"], "labels": ["p"], "tresholt": 0.5}', 422, "invalid", "tresholt"),
        (b'{"texts": ["Ada"], "labels": ["<<SEP>>"]}', 422, "invalid", "reserves"),
        (b'{"texts": ["Ada"], "labels": ["p"], "model": "other"}', 404, "unknown_model", "tiny"),
        (json.dumps(GOOD | {"texts": ["a"] * 51}).encode(), 413, "too_large", "50"),
        (json.dumps(GOOD | {"texts": ["a" * 20_001]}).encode(), 413, "too_large", "20000"),
        (json.dumps(GOOD | {"labels": ["a"] * 21}).encode(), 413, "too_large", "20"),
        (json.dumps(GOOD | {"labels": ["a" * 101]}).encode(), 413, "too_large", "100"),
        (json.dumps(GOOD | {"texts": ["a" * 100_001]}).encode(), 413, "too_large", "bytes"),
    ],
)
def test_a_bad_body_is_refused_in_one_sentence(
    client: httpx.Client, body: bytes, status: int, kind: str, says: str
) -> None:
    answer = client.post("/v1/extract", content=body, headers={"content-type": "application/json"})
    assert says in assert_error(answer, status, kind)


def test_a_body_of_many_wrong_values_is_refused_at_the_first() -> None:
    limits = Limits()
    many = 1_000_000
    with pytest.raises(ApiError, match="There are 1000000 texts; at most 1000 are allowed"):
        parse(ExtractRequest, {"texts": [0] * many, "labels": ["p"]}, limits)
    with pytest.raises(ApiError, match="There are 1000000 labels; at most 200 are allowed"):
        parse(ExtractRequest, {"texts": ["Ada"], "labels": {str(i): 0 for i in range(many)}}, limits)
    with pytest.raises(ApiError, match="There are 1000000 thresholds; at most 200 labels are allowed"):
        parse(ExtractRequest, {"texts": ["Ada"], "labels": ["p"], "threshold": ["a"] * many}, limits)
    with pytest.raises(ApiError, match="field0: Extra inputs are not permitted; it is 0"):
        parse(ExtractRequest, GOOD | {f"field{i}": 0 for i in range(many)}, limits)
    names = ",".join(f'"name{i}": 0' for i in range(200_000))
    with pytest.raises(ApiError, match="the name 'name199999' is twice"):
        decode_json(f'{{{names}, "name199999": 0}}'.encode())


def test_what_scores_above_the_threshold_is_bounded(settings: dict[str, Any]) -> None:
    everything = {"labels": LABELS, "threshold": 0, "nested": True, "multi_label": True}
    long, short = "Ada met Charles Babbage in London . " * 20, "Ada met Charles"
    with server(read_config(settings | {"limits": {"spans": 300}})) as (client, service):
        refused = client.post("/v1/extract", json={"texts": [short, long], **everything})
        assert "More than 300 spans" in assert_error(refused, 413, "too_large")
        found = client.post("/v1/extract", json={"texts": [short] * 2, **everything}).json()["results"]
        assert all(found)
        answer = stream(client, lines(everything, short, long, *[short] * 20))  # each text by itself
        results = [json.loads(line) for line in answer.text.splitlines()][1:-1]
        assert results[1]["error"]["type"] == "too_large"
        assert [result["entities"] for result in results[:1] + results[2:]] == [found[0]] * 21
        assert service.queued_tokens == 0


def test_long_answers_are_written_as_short_ones() -> None:
    entities = [Entity(i, i + 2, "\ud83d\n", 'a "label"', i / 7) for i in range(2500)]
    refusal = ApiError(500, "internal", "It failed.")
    for results in ([], [[]], [entities, [], entities[:1], refusal], [entities[:10]] * 300, [refusal]):
        found = [result if result is refusal else Found(result) for result in results]
        written = asyncio.run(answer_json(Answer(ModelName(name="m", fingerprint="f"), found)))
        shown = [None if result is refusal else [e.to_dict() for e in result] for result in results]
        errors = [
            {"index": i, "type": "internal", "message": "It failed."} for i, r in enumerate(results) if r is refusal
        ]
        model = {"name": "m", "fingerprint": "f"}
        assert written == json.dumps({"model": model, "results": shown} | ({"errors": errors} if errors else {}))


def test_what_is_no_request_for_us(client: httpx.Client) -> None:
    assert_error(client.get("/nowhere"), 404, "not_found")
    refused = client.get("/v1/extract")
    assert_error(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    assert_error(client.post("/v1/extract", data={"texts": "Ada"}), 415, "unsupported_type")
    assert_error(
        client.post("/v1/extract", content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_type"
    )


def test_a_body_without_an_announced_length_is_counted_while_it_is_read(client: httpx.Client) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"texts": ["'
        for _ in range(1000):
            sent += 1
            yield b"a" * 10_000

    try:
        answer = client.post("/v1/extract", content=chunks(), headers={"content-type": "application/json"})
        assert_error(answer, 413, "too_large")
    except httpx.TransportError:
        pass  # the server hung up before the client had read why
    assert sent < 1000


@pytest.mark.slow
def test_a_fuzzed_body_never_breaks_the_server(client: httpx.Client) -> None:
    rng = random.Random(7)
    whole = json.dumps({"texts": ["Ada met Charles", "é"], "labels": {"p": "person"}, "threshold": 0.5}).encode()
    seen = set()
    for _ in range(300):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            action = rng.random()
            if action < 0.4:
                body[at] = rng.randrange(256)
            elif action < 0.7:
                del body[at : at + rng.randint(1, 10)]
            else:
                body[at:at] = rng.choice([b"null", b"[]", b"{}", b"1e400", b'"', b"\\ud800", b"-0", b",", b"\x00"])
        answer = client.post("/v1/extract", content=bytes(body), headers={"content-type": "application/json"})
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 422), (bytes(body), answer.text)
    assert seen == {200, 400, 422}


# --- streams ----------------------------------------------------------------------------------------------------------


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def stream(client: httpx.Client, content: Any) -> httpx.Response:
    return client.post("/v1/extract/stream", content=content, headers={"content-type": "application/x-ndjson"})


@pytest.mark.slow
def test_a_stream_answers_every_text_in_order(client: httpx.Client, extractor: Extractor) -> None:
    texts = [text for text in AWKWARD for _ in range(20)]
    random.Random(2).shuffle(texts)
    sent = lines({"labels": LABELS, "threshold": 0.3}, *texts[:100], *({"text": text} for text in texts[100:]))
    answer = stream(client, (sent[start : start + 777] for start in range(0, len(sent), 777)))
    assert answer.headers["content-type"] == "application/x-ndjson"
    head, *results, end = [json.loads(line) for line in answer.text.splitlines()]
    assert head["model"]["name"] == "tiny"
    assert end == {"done": True, "texts": len(texts)}
    assert [result["index"] for result in results] == list(range(len(texts)))
    assert_equal([result["entities"] for result in results], extractor.extract(texts, LABELS, threshold=0.3))


def test_a_stream_answers_while_it_is_sent(client: httpx.Client) -> None:
    """Each text is sent when the one before it has been answered, over a bare socket."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=30) as connection:
        reader = connection.makefile("rb")

        def send(line: bytes) -> None:
            connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")

        connection.sendall(
            b"POST /v1/extract/stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        send(lines({"labels": LABELS}))
        while b"model" not in (line := reader.readline()):
            assert line
        for _ in range(64):  # a window's worth stays in work, so the first answer comes with the next text
            send(lines("Ada"))
        send(lines("Charles"))
        while b'"index": 0' not in (line := reader.readline()):
            assert line


def test_a_bad_line_of_a_stream_is_answered_alone(client: httpx.Client) -> None:
    bad = [b"7\n", b'{"txt": "Ada"}\n', b"{\n", b"\xff\n", lines("a" * 20_001)]
    answer = stream(client, lines({"labels": LABELS}, "Ada") + b"".join(bad) + lines("Charles"))
    results = [json.loads(line) for line in answer.text.splitlines()][1:]
    kinds = [result["error"]["type"] if "error" in result else "entities" in result for result in results[:-1]]
    assert kinds == [True, "invalid", "invalid", "malformed", "malformed", "too_large", True]
    assert results[-1] == {"done": True, "texts": 7}


def test_a_stream_that_goes_wrong_says_so_in_its_last_line(client: httpx.Client) -> None:
    answer = stream(client, lines({"labels": LABELS}, "Ada") + b'"' + b"a" * 100_001)
    last = json.loads(answer.text.splitlines()[-1])
    assert last["error"]["type"] == "too_large"
    assert "done" not in answer.text
    assert_error(stream(client, b""), 400, "malformed")
    assert_error(stream(client, lines({"labels": []})), 422, "invalid")
    assert_error(stream(client, lines({"labels": ["p"], "model": "x"})), 404, "unknown_model")


# --- load, deadlines, lost clients ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_with_a_time_and_what_is_accepted_is_answered(settings: dict[str, Any]) -> None:
    config = read_config(settings | {"limits": {"queue_seconds": 0.05}})
    request = {"texts": ["Ada met Charles Babbage in London . " * 30], "labels": LABELS}
    with server(config) as (client, service), ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/extract", json=request), range(150)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert_error(answer, 429, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1
        assert service.queued_tokens == 0


def test_a_request_that_takes_too_long_gets_504_and_its_texts_leave_the_queue(settings: dict[str, Any]) -> None:
    config = read_config(settings | {"limits": {"request_seconds": 0.3, "queue_seconds": 1000}})
    request = {"texts": ["Ada met Charles Babbage in London . " * 100] * 300, "labels": LABELS}
    with server(config) as (client, service):
        refused = client.post("/v1/extract", json=request)
        assert "a request may take 0.3 s" in assert_error(refused, 413, "too_large")
        queue = service._models.default.runner.queue
        queue.rate = Rate(512)  # as if the model had run no pass, so that nobody knows how long it takes
        assert_error(client.post("/v1/extract", json=request), 504, "deadline")
        deadline = time.monotonic() + 30
        while service.queued_tokens:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_lost_client_leaves_the_queue(running: tuple[httpx.Client, Service], records: list[RequestRecord]) -> None:
    client, service = running
    records.clear()
    request = {"texts": ["Ada met Charles Babbage in London . " * 200] * 10, "labels": LABELS}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/extract", json=request, timeout=0.15)
    deadline = time.monotonic() + 30
    while not records or service.queued_tokens:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (records[0].status, records[0].error_type) == (499, "gone")


def test_a_draining_server_answers_what_it_has_and_takes_no_more(settings: dict[str, Any]) -> None:
    request = {"texts": ["Ada met Charles Babbage in London . " * 50] * 20, "labels": LABELS}
    with server(read_config(settings)) as (client, service), ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/extract", json=request)
        deadline = time.monotonic() + 30
        while not service.queued_tokens:
            assert time.monotonic() < deadline
        service._draining = True
        refused = client.post("/v1/extract", json=request)
        assert_error(refused, 503, "unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert_error(client.get("/ready"), 503, "unavailable")
        assert first.result().status_code == 200


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_loaded_by_name_and_the_least_used_gives_way(settings: dict[str, Any], tiny_model_dir: Path) -> None:
    more = {"a": str(tiny_model_dir), "b": str(tiny_model_dir), "c": str(tiny_model_dir), "gone": "/no/such/model"}
    with server(read_config(settings | {"models": more, "loaded_models": 2})) as (client, service):

        def ask(name: str | None) -> httpx.Response:
            return client.post("/v1/extract", json=GOOD | {"model": name})

        assert client.get("/v1/models").json()["models"] == ["tiny", "a", "b", "c", "gone"]
        with ThreadPoolExecutor(16) as pool:  # more models than fit, all at once
            names = [name for _ in range(8) for name in ("a", "b", "c", None)]
            for name, answer in zip(names, pool.map(ask, names), strict=True):
                assert answer.status_code == 200, answer.text
                assert answer.json()["model"]["name"] == (name or "tiny")
        assert ask("a").json()["model"]["name"] == "a"
        assert ask("b").json()["model"]["name"] == "b"
        assert [model.name for model in service._models.loaded] == ["tiny", "a", "b"]
        ask("a"), ask("c")
        assert [model.name for model in service._models.loaded] == ["tiny", "a", "c"]
        assert_error(ask("gone"), 503, "unavailable")
        assert ask("a").status_code == 200


# --- keys and logs ----------------------------------------------------------------------------------------------------


def test_with_keys_only_health_answers_without_one(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    key, slow = add_key(file, "team", None), add_key(file, "slow", 6)
    assert key not in file.read_text() and file.stat().st_mode & 0o077 == 0
    with server(read_config(settings), read_keys(file)) as (client, _):
        paths = ["/", "/docs", "/openapi.json", "/ready", "/v1/model", "/v1/models", "/metrics", "/nowhere"]
        for path in paths:
            for headers in ({}, {"Authorization": f"Bearer {key}x"}, {"X-API-Key": ""}, {"Authorization": "Basic ??"}):
                refused = client.get(path, headers=headers)
                assert_error(refused, 401, "unauthorized")
                assert "Basic" in refused.headers["www-authenticate"]
        for path in ("/v1/extract", "/v1/extract/stream"):
            assert_error(client.post(path, json=GOOD), 401, "unauthorized")
        assert client.get("/health").status_code == client.head("/health/").status_code == 200
        basic = base64.b64encode(f"me:{key}".encode()).decode()
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Basic {basic}"}):
            assert client.post("/v1/extract", json=GOOD, headers=headers).status_code == 200
        answers = [client.get("/v1/model", headers={"X-API-Key": slow}) for _ in range(2)]
        assert answers[0].status_code == 200
        assert_error(answers[1], 429, "rate_limited")
        assert 1 <= int(answers[1].headers["retry-after"]) <= 10


def test_a_key_gets_its_rate_back() -> None:
    now = 0.0
    file_key = {"sha256": "0" * 64, "requests_per_minute": 60.0}
    from spanlake.serving.keys import Key, _digest

    keys = Keys({"k": Key(**(file_key | {"sha256": _digest("secret")}))}, clock=lambda: now)
    admitted = 0
    for _ in range(600):  # ten a second, for a minute, with one a second allowed and ten at once
        now += 0.1
        try:
            keys.admit("secret")
            admitted += 1
        except ApiError as error:
            assert error.status == 429
    assert 69 <= admitted <= 71


def test_the_log_has_counts_and_no_text(
    running: tuple[httpx.Client, Service], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = running
    with caplog.at_level(logging.DEBUG):
        answer = client.post(
            "/v1/extract?secret=query",
            json={"texts": ["Xylophon Quartz"], "labels": ["zebra"]},
            headers={"X-Request-ID": "r1"},
        )
        client.post("/v1/extract", content=b'{"texts": ["Xylophon', headers={"content-type": "application/json"})
        deadline = time.monotonic() + 10
        while sum(record.name == "spanlake.access" for record in caplog.records) < 2:
            assert time.monotonic() < deadline
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("spanlake")]
    first = json.loads(ours[0])
    assert first["request_id"] == "r1" == answer.headers["x-request-id"]
    assert (first["status"], first["texts"], first["characters"], first["labels"]) == (200, 1, 15, 1)
    assert first["route"] == "/v1/extract"
    for word in ("Xylophon", "Quartz", "zebra", "secret"):
        assert not any(word in line for line in ours)


def test_cors_is_off_until_an_origin_is_named(settings: dict[str, Any], client: httpx.Client) -> None:
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/extract", headers=asking).status_code == 405
    keys = Keys({})  # that nobody has: asking whether one may call needs none
    with server(read_config(settings | {"cors_origins": ["https://app.example"]}), keys) as (open_client, _):
        answer = open_client.options("/v1/extract", headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        refused = open_client.post("/v1/extract", json=GOOD, headers={"Origin": "https://app.example"})
        assert_error(refused, 401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        other = open_client.options("/v1/extract", headers=asking | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
