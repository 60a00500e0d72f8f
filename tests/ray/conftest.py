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
        runtime_env={"env_vars": {"PYTHONPATH": str(SOURCE_ROOT)}},
    )
    yield
    ray.shutdown()
