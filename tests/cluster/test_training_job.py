"""`ray job submit` of training to a real head: its workers run the submitted code, not the installed code."""

import json
from pathlib import Path

import pytest
from commands import copy_parts, run

from spanlake.package import open_package

RECIPE = """
extends: jobs/recipes/mini-cpu.yaml
model:
  start: ""
  encoder_config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
    intermediate_size: 32}
  hidden_size: 32
schedule: {steps: 4, batch_texts: 4, batch_tokens: 1024, evaluate_every: 4}
checkpoint: {every: 4}
logging: {every: 1}
parallel: {workers: 2, zero_stage: 2}
"""


@pytest.mark.timeout(600)
def test_a_job_trains_the_submitted_code_on_two_workers(head: str, tmp_path: Path) -> None:
    checkout = copy_parts(tmp_path / "checkout")
    trainer = checkout / "platform/spanlake/training/trainer.py"
    marked = trainer.read_text().replace('"torch": torch.__version__', '"torch": "as submitted"')
    assert marked != trainer.read_text()
    trainer.write_text(marked)
    (checkout / "tiny.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    job = f"ray job submit --address {head} --working-dir . -- python jobs/train.py tiny.yaml --directory {out}"
    done = run(job, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4 of 4" in done.stdout and str(out / "package") in done.stdout
    assert open_package(str(out / "package")).metadata["training"]["torch"] == "as submitted"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {record["workers"] for record in records if "loss" in record} == {2}
    verified = run(f"spanlake package verify {out / 'package'}", checkout)
    assert verified.returncode == 0, verified.stderr

    bad = run(f"{job} seed=5", checkout)
    assert bad.returncode and "seed is 7 there and 5 here" in bad.stdout
    assert "Traceback" not in bad.stdout
