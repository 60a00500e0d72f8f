"""examples/circle.sh on three nodes, one of which dies while the lake is read: plain texts become a model, and what
training's evaluation, the lake and the endpoint say of it is the same."""

import gzip
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from chat_server import chat_server
from commands import ROOT, activated, free_port, run

from spanlake.client import Client
from spanlake.data.records import parse_record
from spanlake.evaluation.metrics import Tally
from spanlake.package import describe_model

NODE = {"num_cpus": 2, "object_store_memory": 100_000_000}
LABELS = "company,film,location,organization,person,song"  # sorted, as evaluation asks: their order matters
ROWS, LAKE, DEV = 12, 40, 20  # passages: annotated ones, those of the lake, and more that the model is scored on


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yields a head, whose dashboard takes deployments, and two more nodes."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "platform"))
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    port = free_port()
    head = {**NODE, "include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(**NODE, dashboard_agent_listen_port=free_port())
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{port}")
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def conversations() -> list[dict[str, Any]]:
    with gzip.open(ROOT / "examples" / "conversations.json.gz") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


def answers(conversations: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """Returns the canned answers to the passages: what the conversations say of them, and some wrong ones."""
    examples = {example.text: example for example in (parse_record(record).example for record in conversations)}
    rules: list[dict[str, Any]] = [
        {"status": 429, "times": 2, "headers": {"Retry-After": "0"}},
        {"if": texts[1], "say": "I am sorry, I cannot do that."},
        {"if": texts[2], "say": '[("Nulle part", "ville"), ("Personne", "humain")]'},
        {"if": texts[3], "say": '[("Ada", "person"), ("Lond'},
    ]
    for text in texts:
        entities = [(text[m.start : m.end], m.label, "thing") for m in examples[text].mentions]
        rules.append({"if": text, "say": f"Entities: {entities}\nAbsent: ['award']"})
    return rules


@pytest.mark.timeout(900)
def test_the_circle(nodes: Any, conversations: list[dict[str, Any]], tmp_path: Path) -> None:
    source, work = tmp_path / "texts.parquet", tmp_path / "work"
    examples = [parse_record(record).example for record in conversations[-DEV:]]
    labels = LABELS.split(",")
    gold = {
        example.text: {(m.start, m.end, m.label) for m in example.mentions if m.label in labels} for example in examples
    }
    passages = pq.read_table(ROOT / "examples" / "passages.parquet").column("text").to_pylist()
    texts = [*[text for text in passages if text not in gold][:LAKE], *gold]
    pq.write_table(pa.table({"text": texts}), source)
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(json.dumps({"text": text, "mentions": sorted(of)}) + "\n" for text, of in gold.items()))
    assert {label for of in gold.values() for *_, label in of} == set(labels)
    canned = tmp_path / "answers.json"
    canned.write_text(json.dumps(answers(conversations, texts[:ROWS])))
    server = f"http://127.0.0.1:{free_port()}"
    settings = tmp_path / "serve.yaml"
    settings.write_text(yaml.safe_dump(serve_config(server)))
    deployed = run(f"serve deploy {settings}", tmp_path)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    with chat_server(*json.loads(canned.read_text())) as chat, asking(server) as fingerprints:
        variables = {
            **activated(),
            **{name: os.environ[name] for name in ("PYTHONPATH", "RAY_DASHBOARD_ADDRESS")},
            "RAY_ADDRESS": nodes.address,
            "CHAT_URL": chat.url,
            "CHAT_MODEL": "canned",
            "CHAT_ROWS": str(ROWS),
            "TRAIN": "schedule.steps=2 schedule.evaluate_every=2 schedule.batch_texts=4 schedule.batch_tokens=512",
            "UNIT_ROWS": "4",
            "SERVE_CONFIG": str(settings),
            "SERVER": server,
        }
        script = [str(ROOT / "examples" / "circle.sh"), str(source), str(dev), LABELS, str(work)]
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(script, env=variables, cwd=tmp_path, stdout=log, stderr=log)
            while len(committed := list(work.glob("lake/*.parquet"))) < 3 and process.poll() is None:
                time.sleep(0.02)
            nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)  # SIGKILL of its raylet
            code = process.wait(600)
        assert code == 0, (tmp_path / "log").read_text()
        assert 3 <= len(committed) < len(texts) // 4, "the node did not die in the middle"
        assert len(chat.asked) == ROWS + 2  # the two refused questions were asked again

    package = describe_model(str(work / "run" / "package"))
    assert fingerprints[0] == describe_model("mini")["fingerprint"]
    assert fingerprints[-1] == package["fingerprint"] and len(set(fingerprints)) == 2
    dead = [row for file in (work / "annotated/_dead").iterdir() for row in pq.read_table(file).to_pylist()]
    assert sorted(row["row"] for row in dead) == [1, 2, 3]
    assert json.loads((work / "prepared/statistics.json").read_text())["examples"] == ROWS - 3

    assert json.loads((work / "audit.json").read_text())["complete"]
    lake = {
        row["text"]: row["entities"] for file in work.glob("lake/*.parquet") for row in pq.read_table(file).to_pylist()
    }
    assert set(lake) == set(texts)
    tally = Tally()
    for text, of in gold.items():
        tally.add(((e["start"], e["end"], e["label"]) for e in lake[text]), of)
    [scores] = json.loads((work / "evaluation.json").read_text())["sets"]
    overall = tally.overall()
    assert overall.correct > 0
    assert (scores["gold"], scores["predicted"]) == (overall.gold, overall.predicted)
    assert scores["f1"] == round(100 * overall.f1, 2)
    assert package["training"]["dev_f1"] == pytest.approx(overall.f1, abs=1e-6)
    with Client(server) as client:
        answered = client.extract(list(gold), labels)
    for text, entities in zip(gold, answered, strict=True):
        assert [(e.start, e.end, e.label) for e in entities] == [(e["start"], e["end"], e["label"]) for e in lake[text]]
        assert [e.score for e in entities] == pytest.approx([e["score"] for e in lake[text]], abs=1e-4)


def serve_config(server: str) -> dict[str, Any]:
    """Returns the settings of serve/config.yaml for one small replica.

    One proxy runs, because all nodes have the same address.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"] = {"host": "127.0.0.1", "port": int(server.rpartition(":")[2])}
    del config["grpc_options"]
    [application] = config["applications"]
    application["args"] = {"model": "mini", "threads": 1}
    [deployment] = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.5}
    return config


class asking:
    """Asks a server for its model again and again, and once at the end. A question that fails later is an error."""

    def __init__(self, server: str) -> None:
        self._client, self._over = Client(server, seconds=300), threading.Event()
        self.fingerprints: list[str] = []
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._client.is_ready() and not self._over.wait(0.5):
            pass  # a proxy without an application answers 404
        while not self._over.is_set():
            self.fingerprints.append(self._client.model().fingerprint)
            self._over.wait(0.2)

    def __enter__(self) -> list[str]:
        self._thread.start()
        return self.fingerprints

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.fingerprints.append(self._client.model().fingerprint)
        self._client.close()
