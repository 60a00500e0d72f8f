"""Measures requests per second and latency of `spanlake serve` and of `gliner.serve`, which also uses Ray Serve.

Both serve the same checkpoint with one replica, one after the other on the same machine. Both get the same requests,
each of one text and ten labels, at times drawn from a Poisson process. The times do not depend on the answers, and
latency counts from the time at which a request was due. Each server runs with its own defaults. For gliner three
settings change: the number of cores, the CPU where there is no GPU, and as many words as the checkpoint allows.

    python benchmarks/serving.py --texts short --rates 5,10,20,40,80

The side `free` is Spanlake with a model that costs nothing, so it shows the ceiling of the service itself. `grpc` and
`free-grpc` are asked over gRPC. With `--count`, a request has several texts; gliner.serve takes one, so it gets as many
requests at once. With `--own-labels`, every request has labels of its own.

    python benchmarks/serving.py --haproxy --sides free,free-grpc --rates 100,200,400 --count 8

The last columns are the processor time of the replica and of the proxy for one request, which say more than the clock
on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import psutil
import pyarrow.parquet as pq
from arguments import plain_errors
from machine import machine

from spanlake.options import above_zero, positive

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = ["person", "organization", "location", "date", "film", "song", "team", "award", "event", "product"]
SIDES = "spanlake", "grpc", "free", "free-grpc", "gliner"
TIMEOUT = 30.0  # seconds until a request counts as an error
START_SECONDS = 300
SUSTAINED = 0.95  # a server sustains a rate if it answers this share of the requests
PATIENCE = 2.0  # and the 99th percentile of latency is at most this many seconds


@dataclass(frozen=True)
class Side:
    name: str
    address: str  # host:port
    process: psutil.Process

    @property
    def is_peer(self) -> bool:
        return self.name == "gliner"

    @property
    def url(self) -> str:
        return f"http://{self.address}/{'gliner' if self.is_peer else 'v1/extract'}"

    def bodies(self, texts: Sequence[str], labels: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the bodies of the HTTP requests that together ask for these texts."""
        if self.is_peer:
            return [{"text": text, "labels": labels, "threshold": 0.5} for text in texts]
        return [{"texts": texts, "labels": labels, "threshold": 0.5}]

    def processor_seconds(self) -> tuple[float, float]:
        """Returns what the replica and the proxy have used so far."""
        replica = proxy = 0.0
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):
                title, used = " ".join(process.cmdline()), sum(process.cpu_times()[:2])
                if title.startswith("ray::ServeReplica"):
                    replica += used
                elif title.startswith(("ray::ProxyActor", "ray::HAProxy")) or "haproxy" in process.name():
                    proxy += used
        return replica, proxy


@dataclass(frozen=True)
class Measured:
    rate: float
    statuses: Counter[str]
    seconds: list[float]  # latencies of the answers with status 200
    took: float  # from the first request to the last answer
    replica: float  # processor seconds of one request
    proxy: float

    @property
    def answered(self) -> float:
        return len(self.seconds) / self.took

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) if self.seconds else float("nan")

    @property
    def sustained(self) -> bool:
        total = sum(self.statuses.values())
        return len(self.seconds) >= SUSTAINED * total and self.percentile(99) <= PATIENCE

    def line(self) -> str:
        errors = " ".join(f"{status}:{count}" for status, count in self.statuses.items() if status != "200") or "none"
        return (
            f"{self.rate:>9.1f}{self.answered:>12.1f}{self.percentile(50) * 1000:>10.0f}"
            f"{self.percentile(99) * 1000:>10.0f}{max(self.seconds, default=float('nan')) * 1000:>10.0f}"
            f"{self.replica * 1000:>12.2f}{self.proxy * 1000:>10.2f}  {errors}"
        )


def rates(text: str) -> list[float]:
    """Reads numbers above 0 with commas between them, as the `type` of an option."""
    return [above_zero(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--texts", choices=("short", "mixed", "long"), default="short")
    parser.add_argument("--rates", type=rates, default="5,10,20,40,80", help="requests per second, rising")
    parser.add_argument("--seconds", type=above_zero, default=8, help="duration of each rate")
    parser.add_argument("--sides", default="spanlake,gliner", help=f"of {', '.join(SIDES)}, in order")
    parser.add_argument("--count", type=positive, default=1, help="texts in a request")
    parser.add_argument("--own-labels", action="store_true", help="give each request labels of its own")
    parser.add_argument("--haproxy", action="store_true", help="use Ray Serve's HAProxy, not its Python proxy")
    parser.add_argument("--cores", type=positive, default=os.cpu_count())
    parser.add_argument("--peer", nargs=3, metavar=("CHECKPOINT", "PORT", "WORDS"), help=argparse.SUPPRESS)
    parser.add_argument("--free", nargs=2, metavar=("PORT", "GRPC_PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides = args.sides.split(",")
    if unknown := [side for side in sides if side not in SIDES]:
        parser.error(f"argument --sides: {unknown[0]!r} is no side; give some of {', '.join(SIDES)}")
    if args.peer:
        serve_peer(args.peer[0], int(args.peer[1]), int(args.peer[2]), args.cores)
        return
    if args.free:
        serve_free(args.model, int(args.free[0]), int(args.free[1]))
        return
    texts = read_texts(args.texts)
    print(machine(args.cores, "ray", "torch", "gliner", "transformers"))
    words = sum(len(text.split()) for text in texts) / len(texts)
    proxy = "HAProxy" if args.haproxy else "Ray Serve's Python proxy"
    kind = f"{args.count} {args.texts} texts of {words:.0f} words on average"
    labels = f"{len(LABELS)} labels{', of each request its own' if args.own_labels else ''}"
    print(f"model {args.model}, requests of {kind}, {labels}, {proxy}")
    best: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in sides:
            with serving(name, args.model, Path(directory), args.cores, args.haproxy) as side:
                asyncio.run(measure(side, texts[:8], 2, 3))  # warms up
                print(f"\n{name}\n  offered  answered/s    p50 ms    p99 ms    max ms  replica ms  proxy ms  errors")
                for rate in args.rates:
                    found = asyncio.run(measure(side, texts, rate, args.seconds, args.count, args.own_labels))
                    print(found.line(), flush=True)
                    if found.sustained:
                        best[name] = found
                    elif found.answered < rate / 4:
                        break  # at higher rates the server would only refuse more requests
    for name, found in best.items():
        print(f"{name}: sustains {found.answered:.1f} requests/s, p99 {found.percentile(99) * 1000:.0f} ms")
    if {"spanlake", "gliner"} <= best.keys():
        print(f"ratio: {best['spanlake'].answered / best['gliner'].answered:.1f}")


def read_texts(kind: str) -> list[str]:
    passages: list[str] = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()
    short = [passage.split(". ")[0][:150] for passage in passages]
    long = [" ".join(passage.split()[:300]) for passage in passages]
    if kind == "mixed":
        return [long[i] if i % 4 == 0 else short[i] for i in range(len(passages))]
    return long if kind == "long" else short


Ask = Callable[[Sequence[str], Sequence[str]], Awaitable[str]]  # texts and labels, and a status


async def measure(
    side: Side, texts: Sequence[str], rate: float, seconds: float, count: int = 1, own_labels: bool = False
) -> Measured:
    """Sends `rate` requests of `count` texts per second for `seconds`, waits for all answers, and returns the
    measurements.
    """
    chance = random.Random(7)
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    before = side.processor_seconds()
    async with (grpc_asker if side.name.endswith("grpc") else http_asker)(side) as ask:

        async def asked_for(number: int, due: float) -> None:
            chosen = [texts[(number * count + i) % len(texts)] for i in range(count)]
            status = await ask(chosen, [f"{label} {number}" for label in LABELS] if own_labels else LABELS)
            statuses[status] += 1
            if status == "200":
                latencies.append(time.perf_counter() - due)

        began = time.perf_counter()
        due, asked = began, []
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(asked_for(len(asked), due)))
            due += chance.expovariate(rate)
        await asyncio.gather(*asked)
        took = time.perf_counter() - began
    replica, proxy = (
        (now - then) / max(1, len(latencies)) for now, then in zip(side.processor_seconds(), before, strict=True)
    )
    return Measured(rate, statuses, latencies, took, replica, proxy)


@asynccontextmanager
async def http_asker(side: Side) -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:

        async def post(body: dict[str, Any]) -> str:
            try:
                async with session.post(side.url, json=body) as response:
                    await response.read()
                    return str(response.status)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                return type(error).__name__

        async def ask(texts: Sequence[str], labels: Sequence[str]) -> str:
            answers = await asyncio.gather(*map(post, side.bodies(texts, labels)))
            return max(answers)  # 200 only if all are

        yield ask


@asynccontextmanager
async def grpc_asker(side: Side) -> AsyncIterator[Ask]:
    from spanlake.serving.grpc_api.extraction_pb2 import ExtractRequest, Label
    from spanlake.serving.grpc_api.extraction_pb2_grpc import ExtractionStub

    async with grpc.aio.insecure_channel(side.address) as channel:
        stub = ExtractionStub(channel)

        async def ask(texts: Sequence[str], labels: Sequence[str]) -> str:
            request = ExtractRequest(texts=texts, labels=[Label(name=label) for label in labels], threshold=0.5)
            try:
                await stub.Extract(request, metadata=[("application", "spanlake")], timeout=TIMEOUT)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "200"

        yield ask


@contextmanager
def serving(name: str, model: str, directory: Path, cores: int, haproxy: bool) -> Iterator[Side]:
    """Runs the server of this name, in its own process and with its own Ray, while the block runs."""
    port, grpc_port = str(free_port()), str(free_port())
    own = [sys.executable, __file__, "--model", model, "--cores", str(cores)]
    if name == "gliner":
        checkpoint, words = exported(model, directory)
        command = [*own, "--peer", str(checkpoint), port, str(words)]
    elif name.startswith("free"):
        command = [*own, "--free", port, grpc_port]
    else:
        command = [sys.executable, "-m", "spanlake.cli", "serve", "--model", model]
        command += ["--port", port, "--grpc-port", grpc_port]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(haproxy))
    environment.pop("RAY_ADDRESS", None)
    with open(directory / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            tree = psutil.Process(process.pid)
            wait_until_it_answers(Side(name, f"127.0.0.1:{port}", tree), process, directory / f"{name}.log")
            side = Side(name, f"127.0.0.1:{grpc_port if name.endswith('grpc') else port}", tree)
            yield side
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_it_answers(side: Side, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        side.url,
        json.dumps(side.bodies(["Ada met Alain in London."], LABELS)[0]).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT):
                return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{side.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")


def exported(model: str, directory: Path) -> tuple[Path, int]:
    """Writes the checkpoint that the peer loads. Returns its directory, and the number of words in one window."""
    from spanlake.modeling.gliner_format import write_gliner
    from spanlake.package import open_package

    package = open_package(model)
    write_gliner(directory / "checkpoint", package.model, package.tokenizer.backend)
    return directory / "checkpoint", package.config.max_words


def serve_peer(checkpoint: str, port: int, words: int, cores: int) -> None:
    import ray
    import torch
    from gliner.serve import GLiNERServeConfig
    from gliner.serve.server import serve

    gpu = torch.cuda.is_available()
    ray.init("local", include_dashboard=False, object_store_memory=150_000_000)
    serve(
        GLiNERServeConfig(
            model=checkpoint,
            device="cuda" if gpu else "cpu",
            num_gpus_per_replica=float(gpu),
            max_model_len=words,
            tokenizer_threads=cores,
            enable_compilation=gpu,  # on a CPU, compilation takes minutes for each new shape
            http_port=port,
        ),
        blocking=True,
    )


def serve_free(model: str, port: int, grpc_port: int) -> None:
    from free import set_free

    from spanlake.serving.config import ServeConfig
    from spanlake.serving.deployment import Replica, serve_until_stopped

    class FreeReplica(Replica.func_or_class):  # type: ignore[misc,name-defined]
        async def __init__(self, config: ServeConfig) -> None:
            await super().__init__(config)
            set_free(self.service._models.default.extractor)

    config = ServeConfig(model=model, device="cpu", threads=1)
    serve_until_stopped(config, "127.0.0.1", port, grpc_port, func_or_class=FreeReplica)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    with plain_errors():
        main()
