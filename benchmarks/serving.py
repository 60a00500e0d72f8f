"""Measures requests per second and latency of `spanlake serve` and of `gliner.serve`, which also uses Ray Serve.

Both serve the same checkpoint with one replica, one after the other on the same machine. Both get the same requests,
each of one text and ten labels, at times drawn from a Poisson process. The times do not depend on the answers, and
latency counts from the time at which a request was due. Each server runs with its own defaults. For gliner three
settings change: the number of cores, the CPU where there is no GPU, and as many words as the checkpoint allows.

    python benchmarks/serving.py --texts short --rates 5,10,20,40,80
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow.parquet as pq
from machine import machine

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = ["person", "organization", "location", "date", "film", "song", "team", "award", "event", "product"]
TIMEOUT = 30.0  # seconds until a request counts as an error
START_SECONDS = 300
SUSTAINED = 0.95  # a server sustains a rate if it answers this share of the requests
PATIENCE = 2.0  # and the 99th percentile of latency is at most this many seconds


@dataclass(frozen=True)
class Side:
    name: str
    url: str
    peer: bool

    def body(self, text: str) -> dict[str, Any]:
        if self.peer:
            return {"text": text, "labels": LABELS, "threshold": 0.5}
        return {"texts": [text], "labels": LABELS, "threshold": 0.5}


@dataclass(frozen=True)
class Measured:
    rate: float
    statuses: Counter[str]
    seconds: list[float]  # latencies of the answers with status 200
    took: float  # from the first request to the last answer

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
            f"{self.percentile(99) * 1000:>10.0f}{max(self.seconds, default=float('nan')) * 1000:>10.0f}  {errors}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--texts", choices=("short", "mixed", "long"), default="short")
    parser.add_argument("--rates", default="5,10,20,40,80", help="requests per second, rising")
    parser.add_argument("--seconds", type=float, default=8, help="duration of each rate")
    parser.add_argument("--sides", default="spanlake,gliner", help="the servers to measure, in order")
    parser.add_argument("--haproxy", action="store_true", help="use Ray Serve's HAProxy, not its Python proxy")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--peer", nargs=3, metavar=("CHECKPOINT", "PORT", "WORDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        serve_peer(args.peer[0], int(args.peer[1]), int(args.peer[2]), args.cores)
        return
    texts = read_texts(args.texts)
    print(machine(args.cores, "ray", "torch", "gliner", "transformers"))
    words = sum(len(text.split()) for text in texts) / len(texts)
    proxy = "HAProxy" if args.haproxy else "Ray Serve's Python proxy"
    print(f"model {args.model}, {len(LABELS)} labels, {args.texts} texts of {words:.0f} words on average, {proxy}")
    best: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in args.sides.split(","):
            with serving(name, args.model, Path(directory), args.cores, args.haproxy) as side:
                asyncio.run(measure(side, texts[:8], 2, 3))  # warms up
                print(f"\n{name}\n  offered  answered/s    p50 ms    p99 ms    max ms  errors")
                for rate in map(float, args.rates.split(",")):
                    found = asyncio.run(measure(side, texts, rate, args.seconds))
                    print(found.line(), flush=True)
                    if found.sustained:
                        best[name] = found
                    elif found.answered < rate / 4:
                        break  # at higher rates the server would only refuse more requests
    for name, found in best.items():
        print(f"{name}: sustains {found.answered:.1f} requests/s, p99 {found.percentile(99) * 1000:.0f} ms")
    if len(best) == 2:
        print(f"ratio: {best['spanlake'].answered / best['gliner'].answered:.1f}")


def read_texts(kind: str) -> list[str]:
    passages: list[str] = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()
    short = [passage.split(". ")[0][:150] for passage in passages]
    long = [" ".join(passage.split()[:300]) for passage in passages]
    if kind == "mixed":
        return [long[i] if i % 4 == 0 else short[i] for i in range(len(passages))]
    return long if kind == "long" else short


async def measure(side: Side, texts: Sequence[str], rate: float, seconds: float) -> Measured:
    """Sends `rate` requests per second for `seconds`, waits for all answers, and returns the measurements."""
    chance = random.Random(7)
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:

        async def ask(text: str, due: float) -> None:
            try:
                async with session.post(side.url, json=side.body(text)) as response:
                    await response.read()
                    statuses[str(response.status)] += 1
                    if response.status == 200:
                        latencies.append(time.perf_counter() - due)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                statuses[type(error).__name__] += 1

        began = time.perf_counter()
        due, asked = began, []
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(ask(texts[len(asked) % len(texts)], due)))
            due += chance.expovariate(rate)
        await asyncio.gather(*asked)
    return Measured(rate, statuses, latencies, time.perf_counter() - began)


@contextmanager
def serving(name: str, model: str, directory: Path, cores: int, haproxy: bool) -> Iterator[Side]:
    """Runs the server of this name, in its own process and with its own Ray, while the block runs."""
    port = free_port()
    peer = name == "gliner"
    if peer:
        checkpoint, words = exported(model, directory)
        command = [sys.executable, __file__, "--cores", str(cores), "--peer", str(checkpoint), str(port), str(words)]
        url = f"http://127.0.0.1:{port}/gliner"
    else:
        command = [sys.executable, "-m", "spanlake.cli", "serve", "--model", model, "--port", str(port)]
        url = f"http://127.0.0.1:{port}/v1/extract"
    environment = dict(os.environ, HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(haproxy))
    environment.pop("RAY_ADDRESS", None)
    with open(directory / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            side = Side(name, url, peer)
            wait_until_it_answers(side, process, directory / f"{name}.log")
            yield side
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_it_answers(side: Side, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        side.url, json.dumps(side.body("Ada met Alain in London.")).encode(), {"Content-Type": "application/json"}
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
