"""The service on Ray Serve. The one module of serving that imports Ray.

The HTTP application runs in the replica itself: a request makes one hop, from the proxy to the replica that has the
model, and each replica refuses what its own queue cannot take. The proxies send it to the less busy of two replicas.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import metrics as metric_kinds
from starlette.types import ASGIApp

from spanlake.cluster import cluster
from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.serving.access import TurnHandler
from spanlake.serving.app import make_app
from spanlake.serving.audit import open_audit_log
from spanlake.serving.config import ServeConfig, read_config
from spanlake.serving.grpc_api.extraction_pb2 import ExtractRequest as ExtractMessage
from spanlake.serving.grpc_api.service import ADD_TO_SERVER, extract
from spanlake.serving.keys import read_keys
from spanlake.serving.metrics import Metrics, collect
from spanlake.serving.middleware import log_access
from spanlake.serving.service import Service
from spanlake.serving.tracing import configured_provider, observe_trace, traced

NAME = "spanlake"
_OBJECT_STORE_BYTES = 150_000_000  # requests do not pass through it
# On a busy machine a proxy needs more than Serve's 5 s to start. Serve would kill and start it for ever.
_PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
_WITH_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_FENCED = "spanlake-haproxy"  # is beside the Python of this environment, where Spanlake is installed
_CLOSE_SECONDS = 10.0  # for requests that are left when Serve has drained a replica
# A thread that runs a pass needs the interpreter for microseconds between one operation and the next, hundreds of times
# in a pass. At Python's own 5 ms it would wait that long for the HTTP side each time, and a core with it.
_SWITCH_SECONDS = 0.0003


@serve.deployment(
    name="Extractor",
    max_ongoing_requests=1000,  # seldom reached, because a replica refuses requests by the work that waits
    max_queued_requests=1000,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 1,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
        "look_back_period_s": 11,
        "policy": {"policy_function": "spanlake.serving.scaling:QueuePolicy"},
    },
    max_surge_percent=25,
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
    logging_config={"enable_access_log": False},  # the application writes its own
)
@serve.ingress()
class Replica:
    """One model on one device, or a share of it."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        _log_to_stderr()
        if config.audit_log:
            logging.getLogger("spanlake.access").addHandler(TurnHandler(open_audit_log(Path(config.audit_log))))
        sys.setswitchinterval(_SWITCH_SECONDS)  # the process is the replica's own
        if config.threads is None:
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
            config = config.model_copy(update={"threads": max(1, int(cpus))})
        self._keys = read_keys(Path(config.keys)) if config.keys else None
        self._metrics = Metrics(metric_kinds)
        traces = configured_provider()
        self._observers = [self._metrics.observe_request, *([observe_trace] if traces else [])]
        self.service = await Service.load(config, self._metrics.observe_pass)
        app = make_app(
            self.service,
            config,
            self._keys,
            self._observers,
            lambda: collect(_metric_agents()),
            echo_request_id=False,  # the proxy does
        )
        self._app = traced(app, traces)
        self._since = time.monotonic(), 0.0

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def Extract(self, request: ExtractMessage, grpc_context: Any) -> Any:
        """Answers a call from Serve's gRPC proxy."""
        return await extract(self.service, self._keys, [log_access, *self._observers], request, grpc_context)

    async def check_health(self) -> None:
        self.service.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns what `QueuePolicy` reads every few seconds."""
        (began, busy_before), now, busy = self._since, time.monotonic(), self.service.busy_seconds
        self._since = now, busy
        service = self.service
        self._metrics.observe_state(service.queued_tokens, service.queue_delay, service.batch_tokens)
        return {
            "queue_seconds": service.queue_delay,
            "busy": min(1.0, (busy - busy_before) / max(now - began, 1e-3)),
        }

    async def __del__(self) -> None:
        if hasattr(self, "service"):
            await self.service.close(_CLOSE_SECONDS)


def app(settings: dict[str, Any]) -> serve.Application:
    """What `serve run serve.app:app` and `serve deploy serve/config.yaml` build; `settings` are a `ServeConfig`'s."""
    return application(read_config(settings))


def application(config: ServeConfig, **options: Any) -> serve.Application:
    """`options` are those of a Ray Serve deployment."""
    if config.keys:
        read_keys(Path(config.keys))  # fail now if it cannot be read
    bound: serve.Application = Replica.options(**options).bind(config)  # type: ignore[attr-defined]
    return bound


def serve_until_stopped(
    config: ServeConfig, host: str, port: int, grpc_port: int | None = None, **options: Any
) -> None:
    """Serves until SIGINT or SIGTERM, on the cluster at RAY_ADDRESS or a new one on this machine.

    It answers gRPC too if that has a port. Raises: UserError if no cluster answers or HAProxy would run with Ray's own
    settings, ShortfallError if the server does not start.
    """
    stop = threading.Event()
    fenced = shutil.which(_FENCED, path=str(Path(sys.executable).parent))
    if not fenced and os.environ.get(_WITH_HAPROXY) == "1":
        raise UserError(
            f"{_WITH_HAPROXY} asks for HAProxy, and {_FENCED}, which closes its open ports, is not beside "
            f"{sys.executable}; install this package there with pip, or unset {_WITH_HAPROXY}."
        )
    variables = _PATIENT | ({"RAY_SERVE_HAPROXY_BINARY_PATH": fenced} if fenced else {})
    with cluster(_OBJECT_STORE_BYTES, variables, log_to_driver=True):
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, whose own handler aborts the process
            signal.signal(number, lambda *_: stop.set())
        try:
            grpc_options = {"port": grpc_port, "grpc_servicer_functions": [ADD_TO_SERVER]} if grpc_port else None
            serve.start(http_options={"host": host, "port": port}, grpc_options=grpc_options)
            serve.run(application(config, **options), name=NAME, route_prefix="/")
        except Exception as error:  # of many kinds
            raise ShortfallError(f"The server does not start ({one_line(error)}).") from error
        print(f"http://{host}:{port} answers with {config.model}; stop it with Ctrl-C.", file=sys.stderr, flush=True)
        stop.wait()
        serve.delete(NAME)
        serve.shutdown()


def _metric_agents() -> list[str]:
    """Returns host:port of the agent on each node, which exports the metrics of the node's replicas."""
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]


def _log_to_stderr() -> None:
    for name, handler in (
        ("spanlake", logging.StreamHandler()),
        ("spanlake.access", TurnHandler(logging.StreamHandler())),
    ):
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
