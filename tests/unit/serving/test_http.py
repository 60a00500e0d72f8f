"""What HTTP itself offers: compressed bodies, HEAD, slashes at the end, CORS, the list of models, generated clients."""

import gzip
import json
import random
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from spanlake.client import Client

QUESTION = {"texts": ["Ada met Charles Babbage in London"], "labels": ["person", "city"], "threshold": 0.1}
JSON, NDJSON = "application/json", "application/x-ndjson"
LIMIT = 200_000  # bytes of a body
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def url(tiny_model_dir: Path, serve_app: Callable[..., str]) -> str:
    settings = {
        "model": str(tiny_model_dir),
        "models": {"encyclopedia": "mini", "absent": "/no/such/model"},
        "descriptions": {"tiny": "nothing: its weights are random", "encyclopedia": "passages of encyclopedias"},
        "limits": {"body_bytes": LIMIT, "stream_bytes": LIMIT, "text_characters": LIMIT},
        "cors_origins": [ORIGIN],
    }
    return serve_app(settings)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


# --- gzip -------------------------------------------------------------------------------------------------------------


def post(client: httpx.Client, body: bytes, path: str = "/v1/extract", encoding: str = "gzip") -> httpx.Response:
    kind = NDJSON if "stream" in path else JSON
    return client.post(path, content=body, headers={"content-type": kind, "content-encoding": encoding})


def test_a_body_may_come_as_gzip(client: httpx.Client):
    plain = json.dumps(QUESTION).encode()
    expected = client.post("/v1/extract", json=QUESTION).json()
    assert expected["results"][0]
    for body in (gzip.compress(plain), gzip.compress(plain[:20]) + gzip.compress(plain[20:])):
        assert post(client, body).json() == expected
    assert post(client, plain, encoding="identity").json() == expected
    assert post(client, gzip.compress(plain), encoding="X-GZIP").json() == expected
    lines = json.dumps({"labels": ["person"]}).encode() + b"\n" + b'"Ada met Charles"\n' * 1000
    answer = post(client, gzip.compress(lines), "/v1/extract/stream")
    assert json.loads(answer.text.splitlines()[-1]) == {"done": True, "texts": 1000}


@pytest.mark.parametrize("path", ["/v1/extract", "/v1/extract/stream"])
@pytest.mark.parametrize(
    ("body", "encoding", "status", "kind"),
    [
        (b"{}", "gzip", 400, "malformed"),
        (b"", "gzip", 400, "malformed"),
        (gzip.compress(b"{}")[:-1], "gzip", 400, "malformed"),
        (gzip.compress(b"{}") + b"more", "gzip", 400, "malformed"),
        (gzip.compress(b"{}"), "br", 415, "unsupported_encoding"),
        (gzip.compress(b"{}"), "gzip, gzip", 415, "unsupported_encoding"),
        (gzip.compress(b" " * (LIMIT + 1)), "gzip", 413, "too_large"),
        (gzip.compress(b" " * 300_000_000, 1), "gzip", 413, "too_large"),
        (gzip.compress(b"") * (LIMIT // 20 + 1), "gzip", 413, "too_large"),  # members without content
        (gzip.compress(random.Random(1).randbytes(2 * LIMIT)), "gzip", 413, "too_large"),
    ],
    ids=[  # the bodies would be the ids, and they hold the time at which they are made
        "plain",
        "empty",
        "cut",
        "followed",
        "other encoding",
        "twice",
        "above the limit",
        "far above the limit",
        "many members",
        "random",
    ],
)
def test_bad_gzip_and_too_much_in_it_is_refused(
    client: httpx.Client, path: str, body: bytes, encoding: str, status: int, kind: str
):
    answer = post(client, body, path, encoding)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


def test_exactly_the_limit_is_taken(client: httpx.Client):
    body = json.dumps(QUESTION).encode()
    assert post(client, gzip.compress(body.ljust(LIMIT))).status_code == 200
    assert post(client, gzip.compress(body.ljust(LIMIT + 1))).status_code == 413


def test_long_answers_are_compressed_for_who_takes_gzip(client: httpx.Client):
    asked = QUESTION | {"texts": QUESTION["texts"] * 50}
    packed = client.post("/v1/extract", json=asked, headers={"accept-encoding": "gzip"})
    plain = client.post("/v1/extract", json=asked, headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert packed.json() == plain.json()
    assert "Accept-Encoding" in packed.headers["vary"] and "Accept-Encoding" in plain.headers["vary"]
    assert "content-encoding" not in client.get("/health", headers={"accept-encoding": "gzip"}).headers


def test_a_compressed_stream_is_answered_while_it_is_sent(client: httpx.Client):
    host, port = client.base_url.host, client.base_url.port
    # httpx sends all before it reads, so this speaks HTTP itself.
    with socket.create_connection((host, port), timeout=60) as connection:
        head = f"POST /v1/extract/stream HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NDJSON}\r\n"
        head += "Accept-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        first = b'{"labels": ["person"]}\n' + b'"Ada met Charles"\n' * 100  # more than a window of texts
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(first), first))
        received = b""
        while b"\r\n\r\n" not in received or b'"index": 0' not in unpacked(received):
            received += connection.recv(65536)
        assert b"content-encoding: gzip" in received.lower()


def unpacked(received: bytes) -> bytes:
    """Returns what the chunks of a compressed HTTP answer hold so far."""
    body, content = received.partition(b"\r\n\r\n")[2], b""
    while b"\r\n" in body:
        size, _, body = body.partition(b"\r\n")
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content)


def test_the_python_client_sends_and_reads_gzip(url: str):
    texts = QUESTION["texts"] * 30
    with Client(url) as plain, Client(url, compress=True) as packed:
        assert packed.extract(texts, ["person"], 0.1) == plain.extract(texts, ["person"], 0.1)
        assert list(packed.stream(texts, ["person"], 0.1)) == list(plain.stream(texts, ["person"], 0.1))


# --- methods, paths, origins ------------------------------------------------------------------------------------------


def test_head_is_answered_as_get_without_a_body(client: httpx.Client):
    for path in ("/health", "/ready", "/", "/v1/model", "/v1/models", "/docs", "/openapi.json", "/page/page.js"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
    refused = client.head("/v1/extract")
    assert refused.status_code == 405 and refused.headers["allow"] == "POST"
    assert client.post("/health").headers["allow"] == "GET, HEAD"


def test_a_slash_at_the_end_makes_no_difference(client: httpx.Client):
    assert client.post("/v1/extract/", json=QUESTION).json() == client.post("/v1/extract", json=QUESTION).json()
    stream = json.dumps({"labels": ["person"]}) + "\n"
    assert client.post("/v1/extract/stream/", content=stream, headers={"content-type": NDJSON}).status_code == 200
    for path in ("/health", "/ready", "/v1/model", "/v1/models"):
        assert client.get(f"{path}/").json() == client.get(path).json()
        assert client.head(f"{path}/").status_code == 200
    assert client.get("/docs/", follow_redirects=True).url.path == "/docs"  # whose links are relative


def test_a_browser_may_send_trace_headers(client: httpx.Client):
    asking = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "baggage,content-encoding,content-type,traceparent,tracestate,x-api-key",
    }
    answer = client.options("/v1/extract", headers=asking)
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = client.options("/v1/extract", headers=asking | {"Access-Control-Request-Headers": "x-other"})
    assert refused.status_code == 400


# --- what models are good at ------------------------------------------------------------------------------------------


def test_models_say_what_they_are_good_at(client: httpx.Client, url: str):
    listed = client.get("/v1/models").json()
    assert (listed["default"], listed["models"]) == ("tiny", ["tiny", "encyclopedia", "absent"])
    tiny, mini, absent = listed["about"]
    assert (tiny["description"], tiny["is_loaded"]) == ("nothing: its weights are random", True)
    assert (mini["description"], mini["is_loaded"]) == ("passages of encyclopedias", False)
    assert mini["license"] == "Apache-2.0" and mini["scores"]["CrossNER_AI"] > 40
    assert (absent["description"], absent["scores"], absent["labels"], absent["license"]) == (None, {}, [], None)
    with Client(url) as python:
        assert [model.name for model in python.models()] == listed["models"]
        assert python.models()[1].scores == mini["scores"]


# --- a generated client -----------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from spanlake_client import Client
from spanlake_client.api.default import extract_v1_extract_post, models_v1_models_get, ready_ready_get
from spanlake_client.models import ErrorResponse, ExtractRequest

client = Client(base_url=sys.argv[1])
assert ready_ready_get.sync(client=client).status == "ready"
assert models_v1_models_get.sync(client=client).default == "tiny"
asked = ExtractRequest(texts=["Ada met Charles Babbage"], labels=["person"], threshold=0.1, redact="label")
answer = extract_v1_extract_post.sync(client=client, body=asked)
[entities] = answer.results
assert entities and all(entity.label == "person" for entity in entities), answer
assert "[PERSON]" in answer.redacted[0]
refused = extract_v1_extract_post.sync(client=client, body=ExtractRequest(texts=["Ada"], labels=[]))
assert isinstance(refused, ErrorResponse) and refused.error.type_ == "invalid", refused
print(len(entities))
"""


def test_a_generated_client_works(url: str, client: httpx.Client, tmp_path: Path):
    (tmp_path / "openapi.json").write_text(client.get("/openapi.json").text)
    (tmp_path / "config.yaml").write_text("post_hooks: []\npackage_name_override: spanlake_client\n")
    generator = "from openapi_python_client.cli import app; app()"
    made = subprocess.run(
        [sys.executable, "-c", generator, "generate", "--path", "openapi.json", "--config", "config.yaml"]
        + ["--meta", "none", "--output-path", "spanlake_client"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    warnings = [line for line in (made.stdout + made.stderr).splitlines() if line.startswith("WARNING")]
    assert [line.split()[2:4] for line in warnings] == [["POST", "/v1/extract/stream"]]  # it knows no lines of JSON
    ran = subprocess.run([sys.executable, "-c", PROGRAM, url], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout) > 0
