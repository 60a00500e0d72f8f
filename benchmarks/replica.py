"""Measures what a replica spends on a request beside the model: `python benchmarks/replica.py`.

It calls the ASGI application in this process, without Ray and without sockets, with a model that costs nothing. So the
figure has the parsing, the checks, the queue, the sub-words, the choice of entities, the answer, the access log and
the metrics. It is processor time of all threads for one request, as a median over the rounds.

    python benchmarks/replica.py --profile   # also prints where the time of the event loop goes
"""

import argparse
import asyncio
import cProfile
import json
import logging
import os
import pstats
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from arguments import plain_errors
from free import set_free
from machine import machine
from ray.serve import metrics as metric_kinds

from spanlake.options import positive
from spanlake.serving.access import TurnHandler
from spanlake.serving.app import make_app
from spanlake.serving.config import ServeConfig
from spanlake.serving.metrics import Metrics
from spanlake.serving.service import Service

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = ["person", "organization", "location", "date", "film", "song", "team", "award", "event", "product"]


class Caller:
    """Speaks ASGI with the application."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def ask(self, body: bytes) -> None:
        headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
        headers |= {"accept": "*/*", "accept-encoding": "gzip, deflate", "user-agent": "benchmark/1"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/extract",
            "raw_path": b"/v1/extract",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        sent = False
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await gone.wait()
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200, message

        await self._app(scope, receive, send)
        gone.set()


async def measure(caller: Caller, bodies: list[bytes], callers: int) -> float:
    """Returns the processor seconds of one request, with so many in work at once."""
    waiting = iter(bodies)

    async def work() -> None:
        for body in waiting:
            await caller.ask(body)

    began = time.process_time()
    await asyncio.gather(*(work() for _ in range(callers)))
    return (time.process_time() - began) / len(bodies)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=positive, default=2000)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "torch", "starlette", "pydantic"))
    texts = [text.split(". ")[0][:150] for text in pq.read_table(PASSAGES).column("text").to_pylist()]
    config = ServeConfig(model=args.model, device="cpu", threads=1)
    metrics = Metrics(metric_kinds)
    service = await Service.load(config, metrics.observe_pass)
    set_free(service._models.default.extractor)
    log = logging.getLogger("spanlake.access")
    log.setLevel(logging.INFO)
    log.addHandler(TurnHandler(logging.FileHandler(os.devnull)))
    log.propagate = False
    caller = Caller(make_app(service, config, observers=[metrics.observe_request]))
    bodies = [
        json.dumps({"texts": [texts[i % len(texts)]], "labels": LABELS, "threshold": 0.5}).encode()
        for i in range(args.requests)
    ]
    for callers in (1, 16, 64):
        await measure(caller, bodies, callers)
        taken = [await measure(caller, bodies, callers) for _ in range(args.rounds)]
        print(f"{callers:>3} callers: {statistics.median(taken) * 1000:.2f} ms of CPU a request", flush=True)
    if args.profile:
        profile = cProfile.Profile()
        profile.enable()
        await measure(caller, bodies, 16)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)
    await service.close(5)


if __name__ == "__main__":
    with plain_errors():
        asyncio.run(main())
