"""The commands that the manifests for Kubernetes give to Ray, on a head of this machine."""

import re
import time
from pathlib import Path

import yaml
from commands import ROOT, copy_parts, free_port, run

KUBERAY = ROOT / "deploy" / "kuberay"


def test_the_extraction_job(head: str, tmp_path: Path) -> None:
    job = yaml.safe_load((KUBERAY / "extract" / "rayjob.yaml").read_text(encoding="utf-8"))
    checkout = copy_parts(tmp_path / "checkout")
    command = job["spec"]["entrypoint"]
    command = re.sub(r"--model \S+", "--model mini", command).replace(
        "s3://YOUR-BUCKET/lake", "examples/passages.parquet"
    )
    command = command.replace("s3://YOUR-BUCKET", str(tmp_path)) + " --limit 5"
    done = run(f"ray job submit --address {head} --working-dir . -- {command}", checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(f"spanlake audit {tmp_path / 'found'}", checkout).returncode == 0


def test_the_training_job_plans_the_recipe_of_the_image(tmp_path: Path) -> None:
    job = yaml.safe_load((KUBERAY / "train" / "rayjob.yaml").read_text(encoding="utf-8"))
    command = job["spec"]["entrypoint"].replace("/opt/spanlake/", f"{ROOT}/")
    planned = run(f"{command.replace('s3://YOUR-BUCKET', str(tmp_path))} --dry-run", tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("recipe   pile-ner-small")


def test_the_service(head: str, tmp_path: Path) -> None:
    service = yaml.safe_load((KUBERAY / "serve" / "rayservice.yaml").read_text(encoding="utf-8"))
    settings = service["spec"]["serveConfigV2"]
    port, keys = free_port(), tmp_path / "keys.yaml"
    key = run(f"spanlake key someone --file {keys}", tmp_path).stdout.strip()
    settings = settings.replace("port: 8000", f"port: {port}").replace("port: 9000", f"port: {free_port()}")
    (tmp_path / "serve.yaml").write_text(settings.replace("/etc/spanlake/keys.yaml", str(keys)))
    deployed = run(f"serve deploy --address {head} serve.yaml", tmp_path)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 250
    while run(f"curl -sf -H 'X-API-Key: {key}' {address}/ready", tmp_path).returncode:
        assert time.monotonic() < deadline, run(f"serve status --address {head}", tmp_path).stdout
        time.sleep(1)
    assert "unauthorized" in run(f"curl -s {address}/ready", tmp_path).stdout
    run(f"serve shutdown --yes --address {head}", tmp_path)
