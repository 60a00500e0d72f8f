"""Shows what ten greedy callers of `spanlake serve` do to thirty others: `python benchmarks/fairness.py`.

Each of the thirty sends a short text with ten labels, waits for the answer and then for a second. Each of the ten sends
the most that one request may ask for: a text of 10,000 words, 200 labels, threshold 0, nested, multi_label. First the
thirty are alone, then they share the server with the ten. Beside both, /health and /ready are asked ten times a second.
At the end the ten go away without their answers, and the processor time of the replica shows what is left to do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from arguments import plain_errors
from machine import machine
from serving import LABELS, Side, read_texts, serving

from spanlake.options import above_zero

GREEDY = {
    "texts": ["Ada Lovelace met Charles Babbage in London and wrote " * 1112],
    "labels": [f"type {number}" for number in range(200)],
    "threshold": 0,
    "nested": True,
    "multi_label": True,
}


class Seen:
    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.statuses: dict[str, Counter[str]] = {}

    async def ask(self, who: str, session: aiohttp.ClientSession, method: str, url: str, body: object = None) -> None:
        began = time.perf_counter()
        async with session.request(method, url, json=body) as response:
            answer = await response.text()
        self.seconds.setdefault(who, []).append(time.perf_counter() - began)
        status = str(response.status) if response.status < 400 else f"{response.status} {answer[:200]}"
        self.statuses.setdefault(who, Counter())[status] += 1

    def print(self, title: str) -> None:
        print(f"\n{title}\n{'':<10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}  answers")
        for who, seconds in self.seconds.items():
            figures = statistics.median(seconds), float(np.percentile(seconds, 99)), max(seconds)
            line = "".join(f"{each * 1000:>9.0f}" for each in figures)
            print(f"{who:<10}{line}  {dict(self.statuses[who])}", flush=True)


async def period(side: Side, seconds: float, greedy: int) -> Seen:
    seen, texts = Seen(), read_texts("short")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def normal(number: int) -> None:
            await asyncio.sleep(number / 30)
            while True:
                text = texts[number % len(texts)]
                body = {"texts": [text], "labels": LABELS, "threshold": 0.5}
                await seen.ask("normal", session, "POST", side.url, body)
                await asyncio.sleep(1)

        async def watch(path: str) -> None:
            while True:
                await seen.ask(path, session, "GET", f"http://{side.address}{path}")
                await asyncio.sleep(0.1)

        async def much() -> None:
            while True:
                await seen.ask("greedy", session, "POST", side.url, GREEDY)
                await asyncio.sleep(0.1)

        work = [*map(normal, range(30)), watch("/health"), watch("/ready"), *(much() for _ in range(greedy))]
        tasks = [asyncio.create_task(each) for each in work]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen


def replica_megabytes(side: Side) -> float:
    most = 0.0
    for process in side.process.children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[0].startswith("ray::ServeReplica"):
                most = max(most, process.memory_info().rss / 1e6)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=above_zero, default=20, help="of each period")
    parser.add_argument("--haproxy", action="store_true", help="use Ray Serve's HAProxy, not its Python proxy")
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "ray", "torch"))
    with (
        tempfile.TemporaryDirectory() as directory,
        serving("spanlake", args.model, Path(directory), os.cpu_count() or 1, args.haproxy) as side,
    ):
        asyncio.run(period(side, 5, 0))  # warms up
        asyncio.run(period(side, args.seconds, 0)).print("thirty normal callers")
        print(f"the replica has {replica_megabytes(side):.0f} MB")
        asyncio.run(period(side, args.seconds, 10)).print("and ten greedy ones")
        print(f"the replica has {replica_megabytes(side):.0f} MB")
        for _ in range(3):
            before, _ = side.processor_seconds()
            time.sleep(1)
            print(f"after they have gone, {side.processor_seconds()[0] - before:.2f} s of processor time in a second")


if __name__ == "__main__":
    with plain_errors():
        main()
