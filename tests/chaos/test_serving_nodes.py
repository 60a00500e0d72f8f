"""One of two nodes dies under load, and every call gets the right answer."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from spanlake import Extractor
from spanlake.client import Client
from spanlake.serving.config import read_config

SOURCE_ROOT = ROOT / "platform"
TEXTS = ["Ada met Alain at McGill University", "Marie Curie found radium in Warsaw"]
LABELS = ["person", "place"]


@pytest.fixture
def nodes() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    # By default, Serve kills a proxy that does not start within 5 s, and on a busy machine none would start.
    variables = {"PYTHONPATH": str(SOURCE_ROOT), "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    ray.init(cluster.address, log_to_driver=False, runtime_env={"env_vars": variables})
    yield cluster
    from ray import serve

    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def test_a_nodes_death_loses_and_falsifies_no_answer(nodes: Any, tiny_model_dir: Path):
    from ray import serve

    from spanlake.serving.deployment import NAME, application

    expected = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32").extract(TEXTS, LABELS, 0.4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = read_config({"model": str(tiny_model_dir), "device": "cpu", "precision": "float32", "threads": 1})
    scaling = {"min_replicas": 2, "max_replicas": 2, "initial_replicas": 2}
    bound = application(
        config, ray_actor_options={"num_cpus": 0.6}, autoscaling_config=scaling
    )  # one replica for each node
    serve.run(bound, name=NAME, route_prefix="/")
    [worker] = nodes.worker_nodes
    with Client(f"http://127.0.0.1:{port}", seconds=180) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.extract, TEXTS, LABELS, 0.4) for _ in range(300)]
        asked[50].result()
        nodes.remove_node(worker, allow_graceful=False)  # SIGKILL of its raylet
        for each in asked:
            found = [[(e.start, e.end, e.label) for e in entities] for entities in each.result()]
            assert found == [[(e.start, e.end, e.label) for e in entities] for entities in expected]
