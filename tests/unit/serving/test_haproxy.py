"""`spanlake-haproxy`: Ray's settings and Ray's HAProxy, with what it changes in them. No Ray runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from commands import ROOT, free_port

from spanlake.errors import UserError
from spanlake.serving.config import read_config
from spanlake.serving.haproxy import fenced

QUESTION = {"texts": ["Ada met Charles"], "labels": ["person"]}
START = "from spanlake.serving.haproxy import main; main()"
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def ray_haproxy() -> Any:
    return pytest.importorskip("ray.serve._private.haproxy")


def settings(ray_haproxy: Any, folder: Path, servers: list[tuple[str, int]] | None) -> tuple[Path, dict[str, int]]:
    """Returns the file that Ray writes for an application with these servers, or for none, and the ports in it."""
    from ray.serve.config import HTTPOptions, gRPCOptions

    ports = {name: free_port() for name in ("http", "grpc", "stats", "metrics")}
    functions = ["spanlake.serving.grpc_api.extraction_pb2_grpc.add_ExtractionServicer_to_server"]
    config = ray_haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        stats_port=ports["stats"],
        metrics_port=ports["metrics"],
        metrics_enabled=False,
        http_options=HTTPOptions(host="127.0.0.1", port=ports["http"]),
        grpc_options=gRPCOptions(port=ports["grpc"], grpc_servicer_functions=functions),
        has_received_routes=True,
        has_received_servers=True,
        health_check_rise=1,
    )
    backends = {}
    if servers is not None:
        named = [ray_haproxy.ServerConfig(f"server-{at}", *server) for at, server in enumerate(servers)]
        backends["app"] = ray_haproxy.BackendConfig(
            name="app", path_prefix="/", app_name="spanlake", servers=named, http_health_check_path="/health"
        )
    file = folder / "haproxy.cfg"
    ray_haproxy.HAProxyApi(config, backends, str(file))._generate_config_file_internal()
    return file, ports


@contextmanager
def running(file: Path, port: int) -> Iterator[psutil.Process]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "platform"), RAY_SERVE_HAPROXY_BINARY_PATH=sys.executable)
    process = subprocess.Popen([sys.executable, "-c", START, "-db", "-f", str(file)], env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                httpx.get(f"http://127.0.0.1:{port}/-/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def test_without_an_application_callers_are_told_to_try_again(ray_haproxy: Any, tmp_path: Path) -> None:
    file, ports = settings(ray_haproxy, tmp_path, None)
    with running(file, ports["http"]) as process:
        answer = httpx.post(f"http://127.0.0.1:{ports['http']}/v1/extract", json=QUESTION)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            call = channel.unary_unary("/spanlake.v1.Extraction/Extract")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=PATIENCE)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        listening = {each.laddr for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
        assert {each.port for each in listening} == set(ports.values())
        assert {each.ip for each in listening} == {"127.0.0.1"}
        assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600


def test_an_application_is_reached_and_is_missed_with_503(
    ray_haproxy: Any, tmp_path: Path, tiny_model_dir: Path, serve_app: Callable[..., str]
) -> None:
    url = httpx.URL(serve_app({"model": str(tiny_model_dir)}))
    file, ports = settings(ray_haproxy, tmp_path, [(url.host, int(url.port or 0))])
    with running(file, ports["http"]):
        address = f"http://127.0.0.1:{ports['http']}"
        answer = httpx.post(f"{address}/v1/extract", json=QUESTION, timeout=PATIENCE)
        assert answer.status_code == 200 and answer.json()["model"]["name"] == "tiny"
        assert httpx.get(f"{address}/nothing").status_code == 404  # the application's own
    (tmp_path / "dead").mkdir()
    file, ports = settings(ray_haproxy, tmp_path / "dead", [("127.0.0.1", free_port())])
    with running(file, ports["http"]):
        answer = httpx.post(f"http://127.0.0.1:{ports['http']}/v1/extract", json=QUESTION, timeout=PATIENCE)
        assert answer.status_code == 503


def test_settings_of_another_ray_are_refused(ray_haproxy: Any, tmp_path: Path) -> None:
    file, _ = settings(ray_haproxy, tmp_path, None)
    written = file.read_text()
    fenced(written)
    for known, other in (("mode 666", "mode 660"), ("bind *:", "bind :"), ("status 404", "status 410")):
        with pytest.raises(ValueError, match="is there 0 times"):
            fenced(written.replace(known, other))
    file.write_text("global\n")
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "platform"))
    done = subprocess.run(
        [sys.executable, "-c", START, "-f", str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "is not as Ray 2.60 writes it" in done.stderr and "unset RAY_SERVE_HAPROXY_BINARY_PATH" in done.stderr
    file.unlink()
    done = subprocess.run(
        [sys.executable, "-c", START, "-f", str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "cannot be read and changed" in done.stderr and str(file) in done.stderr


def test_a_server_does_not_start_with_an_open_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spanlake.serving.deployment import serve_until_stopped

    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="spanlake-haproxy, which closes its open ports, is not beside"):
        serve_until_stopped(read_config({"model": "mini"}), "127.0.0.1", free_port())
