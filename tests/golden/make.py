"""Writes the golden files that tests/unit/test_golden.py compares with.

    python tests/golden/make.py

Run it when the embedded model changes, or when a change is meant to alter entities or training, and say why in the
commit. Everything is computed in float32 on the CPU.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spanlake import Extractor
from spanlake.cli import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LABELS = ["person", "organization", "location", "film", "song", "sports team", "award"]
PASSAGES = 60
STEPS = 12


def entities() -> list[list[list[Any]]]:
    """Returns [start, end, label, score] of each entity in the first passages of the demo."""
    texts = pq.read_table(ROOT / "examples" / "passages.parquet").column("text").to_pylist()[:PASSAGES]
    extractor = Extractor.load("mini", device="cpu", precision="float32")
    return [[[e.start, e.end, e.label, round(e.score, 4)] for e in found] for found in extractor.extract(texts, LABELS)]


def training_curve(directory: Path) -> list[float]:
    """Returns the loss of each step of a short run in one process."""
    recipe = ROOT / "jobs" / "recipes" / "pile-ner-small-cpu.yaml"
    changes = [
        f"data.root={ROOT / 'examples'}",
        f"schedule.steps={STEPS}",
        "logging.every=1",
        "optim.encoder_lr=1e-3",
        "optim.head_lr=2e-3",
    ]
    changes += [f"schedule.evaluate_every={STEPS}", f"checkpoint.every={STEPS}"]
    assert main(["train", str(recipe), *changes, "--directory", str(directory)]) == 0
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(found, ensure_ascii=False) for found in entities())
    (HERE / "entities.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        curve = training_curve(Path(temporary) / "run")
    (HERE / "training_curve.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
