"""deploy/nginx.conf before two real servers: certificates of clients, and a share of the requests for a candidate."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from commands import ROOT, free_port

QUESTION = {"texts": ["Ada met Charles"], "labels": ["person"]}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a directory with an authority, and a server and a client that it has signed."""
    directory = tmp_path_factory.mktemp("tls")
    request = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    commands = [f"{request} -x509 -keyout ca.key -out ca.pem -subj /CN=authority"]
    for name in ("server", "client"):
        subject = f"-subj /CN={name} -addext subjectAltName=IP:127.0.0.1"
        commands.append(f"{request} -x509 -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem {subject}")
    for command in commands:
        subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def address(
    certificates: Path, tiny_model_dir: Path, serve_app: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed")
    port, directory = free_port(), tmp_path_factory.mktemp("nginx")
    settings = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for old, new in {
        "5%": "50%",
        "127.0.0.1:8000": serve_app({"model": str(tiny_model_dir)}).removeprefix("http://"),
        "127.0.0.1:8100": serve_app({"model": str(tiny_model_dir), "models": {"b": "mini"}}).removeprefix("http://"),
        "8443": f"127.0.0.1:{port}",
        "/etc/spanlake/tls": str(certificates),
        "/tmp/spanlake-nginx.pid": str(directory / "pid"),
    }.items():
        assert old in settings
        settings = settings.replace(old, new)
    file = directory / "nginx.conf"
    file.write_text(settings)
    command = [nginx, "-p", str(directory), "-c", str(file), "-e", str(directory / "errors"), "-g", "daemon off;"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, (directory / "errors").read_text()
            time.sleep(0.05)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def client(certificates: Path, name: str | None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if name:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return httpx.Client(verify=context, timeout=30)


def test_only_a_caller_with_a_certificate_is_answered(address: str, certificates: Path) -> None:
    with client(certificates, None) as stranger:
        refused = stranger.post(f"{address}/v1/extract", json=QUESTION)
    assert refused.status_code == 400 and "No required SSL certificate" in refused.text
    with client(certificates, "client") as known:
        answer = known.post(f"{address}/v1/extract", json=QUESTION)
    assert answer.status_code == 200 and answer.json()["model"]["name"] == "tiny"


def test_a_share_of_the_requests_goes_to_the_candidate(address: str, certificates: Path) -> None:
    with client(certificates, "client") as known:
        served = Counter(len(known.get(f"{address}/v1/models").json()["models"]) for _ in range(60))
    assert set(served) == {1, 2} and min(served.values()) > 5


def test_streams_pass(address: str, certificates: Path) -> None:
    lines = b'{"labels": ["person"]}\n' + b'"Ada met Charles"\n' * 200
    with client(certificates, "client") as known:
        answer = known.post(
            f"{address}/v1/extract/stream", content=lines, headers={"Content-Type": "application/x-ndjson"}
        )
    assert answer.text.rstrip().endswith('{"done": true, "texts": 200}')
