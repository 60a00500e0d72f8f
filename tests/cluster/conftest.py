"""One small local cluster for all tests that can share it, and heads that jobs are submitted to."""

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
        # Serve kills a proxy that is not up in 5 s, and on a busy machine it starts none.
        runtime_env={"env_vars": {"PYTHONPATH": str(SOURCE_ROOT), "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head that takes jobs. No port of it is one that another Ray here may hold."""
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
        # The dashboard answers before the node's agent, which starts jobs, has joined it.
        while (trial := run(f"ray job submit --address {address} -- true", directory)).returncode:
            assert process.poll() is None and time.monotonic() < deadline, trial.stdout + trial.stderr
            time.sleep(1)
        yield address
    finally:
        # Asked to stop, a node drains for half a minute.
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        process.wait(60)
