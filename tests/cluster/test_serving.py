"""The service on a real Ray Serve over HTTP: it gives the same answers as the Extractor, scales its replicas, changes
its model without a failed request, and survives a killed replica."""

import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanlake import Entity, Extractor, cli
from spanlake.serving.config import ServeConfig, read_config

LABELS = ["person", "university", "city"]
TEXTS = [
    "",
    "Alain Farley works at McGill University in Montréal, Canada.",
    "Marie Curie 🙂 wrote e\u0301 and \u200b zero width in Geneva",
    "half a pair \ud83d in London",
    "玛丽·居里出生于华沙。",
    "Ada " * 700,
    "Ada met Charles Babbage.\r\n" * 20,
]
PATIENCE = 120  # seconds; an idle machine needs a few


@pytest.fixture(scope="module")
def address(cluster: None) -> Iterator[str]:
    """Returns the address of a proxy without a deployment."""
    from ray import serve

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def settings(model: Path, **limits: Any) -> ServeConfig:
    values = {"model": str(model), "device": "cpu", "precision": "float32", "batch_tokens": 512, "threads": 1}
    return read_config(values | {"limits": limits})


def deploy(config: ServeConfig, **options: Any) -> None:
    """Waits until all replicas answer."""
    from ray import serve

    from spanlake.serving.deployment import NAME, application

    environment = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}
    actor = {"num_cpus": 0.1, "runtime_env": {"env_vars": environment}}
    serve.run(application(config, ray_actor_options=actor, **options), name=NAME, route_prefix="/")


def fixed(replicas: int) -> dict[str, Any]:
    return {"min_replicas": replicas, "max_replicas": replicas, "initial_replicas": replicas}


def running_replicas() -> int:
    from ray import serve

    return int(serve.status().applications["spanlake"].deployments["Extractor"].replica_states.get("RUNNING", 0))


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def is_equal(results: list[Any], expected: list[Any]) -> bool:
    return all(
        [(e["start"], e["end"], e["text"], e["label"]) for e in ours]
        == [(e.start, e.end, e.text, e.label) for e in theirs]
        and [e["score"] for e in ours] == pytest.approx([e.score for e in theirs], abs=1e-5)
        for ours, theirs in zip(results, expected, strict=True)
    )


@dataclass
class Tally:
    """The answers that clients received while they asked without pause."""

    statuses: Counter[Any] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)


@contextmanager
def clients(address: str, extractors: list[Extractor], count: int, texts: list[str] = TEXTS) -> Iterator[Tally]:
    """Asks from several threads until the block ends, and compares every answer with that of its model."""
    asked: dict[str, Any] = {"labels": LABELS, "threshold": 0.3}
    expected = {e.package.fingerprint: e.extract(texts, **asked) for e in extractors}
    body = json.dumps({"texts": texts, **asked})
    tally, stop, lock = Tally(), threading.Event(), threading.Lock()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not stop.is_set():
                status: Any
                try:
                    answer = client.post("/v1/extract", content=body, headers={"content-type": "application/json"})
                    status = answer.status_code
                except httpx.TransportError as error:
                    status = type(error).__name__
                with lock:
                    tally.statuses[status] += 1
                    if status == 200:
                        found = answer.json()
                        tally.models[found["model"]["fingerprint"]] += 1
                        if not is_equal(found["results"], expected[found["model"]["fingerprint"]]):
                            tally.wrong.append(found)

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(ask) for _ in range(count)]
        try:
            yield tally
        finally:
            stop.set()
            for future in running:
                future.result()


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, Extractor]:
    """Writes a package with other weights."""
    import torch

    from spanlake.package import open_package, save_package

    directory = tmp_path_factory.mktemp("other") / "package"
    package = open_package(str(tiny_model_dir))
    with torch.no_grad():
        for parameter in package.model.spans.parameters():
            parameter.mul_(1.3)
    save_package(directory, package.model, package.tokenizer.backend, name="other", metadata={}, card="Random.\n")
    return directory, Extractor.load(str(directory), device="cpu", precision="float32")


# --- tests --------------------------------------------------------------------------------------------------------


def test_answers_under_load_are_the_extractors(address: str, tiny_model_dir: Path, extractor: Extractor) -> None:
    deploy(settings(tiny_model_dir), autoscaling_config=fixed(2))
    rng = random.Random(4)
    questions: list[dict[str, Any]] = [
        {"labels": LABELS, "threshold": 0.3},
        {"labels": {"who": "person", "where": "city"}, "threshold": {"who": 0.2, "where": 0.6}, "nested": True},
        {"labels": [f"type {i}" for i in range(14)], "threshold": 0.45, "multi_label": True},
    ]
    requests = [{"texts": rng.choices(TEXTS, k=rng.randint(1, 4)), **rng.choice(questions)} for _ in range(60)]

    def ask(request: dict[str, Any]) -> Any:
        header = {"content-type": "application/json"}
        answer = httpx.post(f"{address}/v1/extract", content=json.dumps(request), headers=header, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    with ThreadPoolExecutor(12) as pool:
        for request, results in zip(requests, pool.map(ask, requests), strict=True):
            assert is_equal(results, extractor.extract(**request)), request
    lines = [json.dumps({"labels": LABELS, "threshold": 0.3}), *map(json.dumps, TEXTS * 30)]
    answer = httpx.post(
        f"{address}/v1/extract/stream",
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
        timeout=60,
    )
    _, *results, end = [json.loads(line) for line in answer.text.splitlines()]
    assert end == {"done": True, "texts": len(TEXTS) * 30}
    assert is_equal([result["entities"] for result in results], extractor.extract(TEXTS * 30, LABELS, threshold=0.3))
    assert httpx.get(f"{address}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{address}/nowhere").json()["error"]["type"] == "not_found"


def test_a_killed_replica_costs_no_answer(address: str, tiny_model_dir: Path, extractor: Extractor) -> None:
    deploy(settings(tiny_model_dir), autoscaling_config=fixed(2))
    with clients(address, [extractor], 6) as tally:
        wait_until(lambda: tally.statuses[200] > 20, "no answers")
        victim = replica_processes()[0]
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait(30)
        before = tally.statuses[200]
        wait_until(lambda: tally.statuses[200] > before + 50, "no answers after the kill")
        wait_until(
            lambda: running_replicas() == 2 and victim not in replica_processes(), "no replica came in its place"
        )
    assert not tally.wrong
    lost = {status: count for status, count in tally.statuses.items() if status != 200}
    assert set(lost) <= {500, 503}, lost  # the proxy's answers to requests of the dead replica
    assert sum(lost.values()) <= 6, lost  # one for each client at most


def test_a_new_model_is_rolled_out_without_a_failed_request(
    address: str, tiny_model_dir: Path, extractor: Extractor, other: tuple[Path, Extractor]
) -> None:
    options = {"autoscaling_config": fixed(1), "max_surge_percent": 100, "graceful_shutdown_timeout_s": 60}
    deploy(settings(tiny_model_dir), **options)
    directory, theirs = other
    with clients(address, [extractor, theirs], 4) as tally:
        wait_until(lambda: tally.models[extractor.package.fingerprint] > 10, "no answers of the first model")
        deploy(settings(directory), **options)
        wait_until(lambda: running_replicas() == 1, "the old replica stays")
        before = tally.models[extractor.package.fingerprint]
        seen = tally.models[theirs.package.fingerprint]
        wait_until(lambda: tally.models[theirs.package.fingerprint] > seen + 20, "no answers of the second model")
        assert tally.models[extractor.package.fingerprint] == before
    assert set(tally.statuses) == {200}, tally.statuses
    assert not tally.wrong


def test_replicas_follow_the_queued_work(address: str, tiny_model_dir: Path, extractor: Extractor) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
        "look_back_period_s": 3,
        "metrics_interval_s": 1,
        "policy": {
            "policy_function": "spanlake.serving.scaling:QueuePolicy",
            "policy_kwargs": {"queue_seconds": 0.05, "busy": 0.2},
        },
    }
    deploy(settings(tiny_model_dir), autoscaling_config=scaling)
    wait_until(lambda: running_replicas() == 1, "more than one replica at the start")
    with clients(address, [extractor], 8) as tally:
        wait_until(lambda: running_replicas() == 3, "no more replicas under load")
    wait_until(lambda: running_replicas() == 1, "no fewer replicas without load")
    assert set(tally.statuses) == {200}, tally.statuses
    assert not tally.wrong


def replica_processes() -> list[psutil.Process]:
    """Returns the replicas of this process's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica:spanlake" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("fixture", "threshold"), [("tiny_model_dir", 0.3), ("token_model_dir", 0.02)])
def test_answers_are_the_rows_of_the_bulk_job(
    address: str, tmp_path: Path, request: pytest.FixtureRequest, fixture: str, threshold: float
) -> None:
    """Of a span model and of a token-level model."""
    model: Path = request.getfixturevalue(fixture)
    texts = [text for text in TEXTS if "\ud83d" not in text]  # a Parquet file cannot hold lone surrogates
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    arguments = ["extract", str(tmp_path / "texts.parquet"), str(tmp_path / "out"), "--labels", ",".join(LABELS)]
    arguments += ["--model", str(model), "--threshold", str(threshold), "--precision", "float32", "--device", "cpu"]
    assert cli.main(arguments) == 0
    (unit,) = (tmp_path / "out").glob("*.parquet")
    rows = [[Entity(**entity) for entity in row["entities"]] for row in pq.read_table(unit).to_pylist()]
    assert sum(map(len, rows)) > 100

    deploy(settings(model), autoscaling_config=fixed(1))
    asked = {"labels": LABELS, "threshold": threshold}
    with httpx.Client(base_url=address, timeout=60) as client:
        together = client.post("/v1/extract", json={"texts": texts, **asked}).json()["results"]
        alone = [client.post("/v1/extract", json={"texts": [text], **asked}).json()["results"][0] for text in texts]
    assert is_equal(together, rows) and is_equal(alone, rows)
