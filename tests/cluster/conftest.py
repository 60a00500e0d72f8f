"""A small local cluster that tests share, and heads that accept jobs."""

import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from commands import ROOT, activated, free_port, run

SOURCE_ROOT = ROOT / "platform"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=150_000_000,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                "PYTHONPATH": str(SOURCE_ROOT),
                # By default, Serve kills a proxy that does not start within 5 s. On a busy machine none would start.
                "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
                # Ray Train looks for a dashboard at the end of each run, for twelve seconds if nothing answers.
                "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
            }
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Returns the address of a Ray head that accepts jobs. Its ports differ from those of other Ray clusters here."""
    directory = tmp_path_factory.mktemp("head")
    ports = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    numbers = {name: free_port() for name in [*ports, "metrics-export-port", "ray-client-server-port"]}
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
    command += ["--disable-usage-stats", *(f"--{name}={number}" for name, number in numbers.items())]
    variables = {**activated(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=directory, env=variables, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{numbers['dashboard-port']}"
    try:
        deadline = time.monotonic() + 200
        # The dashboard answers before the agent that starts jobs has joined.
        while (trial := run(f"ray job submit --address {address} -- true", directory)).returncode:
            assert process.poll() is None and time.monotonic() < deadline, trial.stdout + trial.stderr
            time.sleep(1)
        yield address
    finally:
        # Kill it, because a node that is asked to stop drains for half a minute.
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        process.wait(60)
