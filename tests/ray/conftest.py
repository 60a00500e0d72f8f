"""One small local cluster for all tests that can share it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE_ROOT = Path(__file__).parents[2] / "platform"


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
