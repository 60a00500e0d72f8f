"""Runs in one process: what they leave, that they go on where they were stopped, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from commands import ROOT
from metric_kinds import shown_metrics
from pyarrow import fs

from spanlake import cli
from spanlake.errors import ShortfallError
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.package import open_package, repack
from spanlake.storage import locate
from spanlake.training.command import _prepare
from spanlake.training.processes import train_here
from spanlake.training.recipe import Recipe, read_recipe
from spanlake.training.tracking import Tracker, numbers

STEPS = 6


@pytest.fixture(scope="module")
def recipe_file(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    with open(directory / "texts.jsonl", "w", encoding="utf-8") as file:
        for i in range(60):
            words = ["Ada", "met", "Curie", "in", ("London", "Warsaw", "Geneva")[i % 3], *["and"] * (i % 7)]
            spans = [[0, 0, "person"], [2, 2, "person"], [4, 4, "place"]]
            file.write(json.dumps({"tokenized_text": words, "ner": spans}) + "\n")
    recipe = {
        "name": "tiny",
        "model": {"start": str(tiny_model_dir)},
        "data": {"train": ["texts.jsonl"], "root": str(directory), "held_out": 5},
        "schedule": {"steps": STEPS, "batch_texts": 6, "micro_tokens": 120, "evaluate_every": 3},
        "optim": {"encoder_lr": 1e-3, "head_lr": 1e-3},
        "checkpoint": {"every": 2},
        "logging": {"every": 1, "tensorboard": False},
    }
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(recipe_file: Path, directory: str | Path, *changes: str) -> int:
    return cli.main(["train", str(recipe_file), *changes, "--directory", str(directory)])


def losses(text: str) -> list[float]:
    return [record["loss"] for record in map(json.loads, text.splitlines()) if "loss" in record]


@pytest.fixture(scope="module")
def whole(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert run(recipe_file, directory) == 0
    return directory


def test_a_run_leaves_a_package_and_its_measurements(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = open_package(str(whole / "package"))
    assert package.metadata["training"]["step"] in (3, 6)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    assert all(0 <= record["waiting_share"] <= 1 for record in records if "loss" in record)
    assert all(0 < record["flop_utilisation"] < 1 for record in records if "loss" in record)
    assert [record["step"] for record in records if "dev_f1" in record] == [3, 6]
    assert max(record["dev_f1"] for record in records if "dev_f1" in record) == package.metadata["training"]["dev_f1"]
    assert json.loads((whole / "recipe.json").read_text())["name"] == "tiny"
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["00000004", "00000006"]


def test_the_dashboard_shows_what_a_run_measures(whole: Path) -> None:
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    measured = {f"spanlake_training_{name}" for record in records for name in numbers(record)}
    _, shown = shown_metrics(ROOT / "deploy" / "grafana" / "training.json")
    assert shown == measured


class Stopped(Exception):
    pass


def run_until(stop: int, recipe_file: Path, directory: str, *changes: str) -> None:
    """The run as it is left by what ends it after the record of a step."""
    record = Tracker.record

    def record_until(self: Tracker, values: dict) -> None:
        record(self, values)
        if values["step"] == stop:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Tracker, "record", record_until)
        train_here(read_recipe(recipe_file, [*changes]), locate(directory), _prepare)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    stop: int, recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    run_until(stop, recipe_file, str(tmp_path / "run"))
    assert run(recipe_file, tmp_path / "run") == 0
    assert losses((tmp_path / "run/metrics.jsonl").read_text()) == losses((whole / "metrics.jsonl").read_text())
    assert open_package(str(tmp_path / "run/package")).fingerprint == open_package(str(whole / "package")).fingerprint


def test_an_average_of_the_weights_is_scored_and_published_and_goes_on_too(
    recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    changes = ["optim.average=0.9", "schedule.evaluate_every=6"]
    assert run(recipe_file, tmp_path / "run", *changes) == 0
    package = open_package(str(tmp_path / "run/package"))
    # Training itself is the same.
    assert losses((tmp_path / "run/metrics.jsonl").read_text()) == losses((whole / "metrics.jsonl").read_text())
    weights = torch.load(tmp_path / "run/checkpoints/00000006/engine.pt", weights_only=True)["model"]
    apart = [(weights[name] - weight).abs().max().item() for name, weight in package.model.named_parameters()]
    assert max(apart) > 1e-4
    run_until(5, recipe_file, str(tmp_path / "stopped"), *changes)
    assert run(recipe_file, tmp_path / "stopped", *changes) == 0
    assert open_package(str(tmp_path / "stopped/package")).fingerprint == package.fingerprint


def test_an_adapter_is_trained_and_published_and_the_run_goes_on_where_it_was_stopped(
    recipe_file: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    changes = ["model.lora={rank: 4, targets: [query, value], publish: adapter}", f"model.start={base}"]
    changes += ["optim.average=0.9", "schedule.evaluate_every=6"]
    assert run(recipe_file, tmp_path / "whole", *changes) == 0
    package, start = open_package(str(tmp_path / "whole/package")), open_package(str(base))
    assert package.metadata["adapter"]["base_fingerprint"] == start.fingerprint
    weights = dict(start.model.named_parameters())
    other = {name for name, weight in package.model.named_parameters() if not torch.equal(weight, weights[name])}
    layers = [f"encoder.encoder.layer.{i}.attention.self" for i in (0, 1)]
    assert other == {f"{layer}.{name}.weight" for layer in layers for name in ("query", "value")}
    state = torch.load(tmp_path / "whole/checkpoints/00000006/engine.pt", weights_only=True)["model"]
    assert all(".lora_" in name for name in state), "a checkpoint holds no weight that is not trained"

    run_until(5, recipe_file, str(tmp_path / "stopped"), *changes)
    base.rename(tmp_path / "away")
    with torch.no_grad():
        start.model.spans.out.bias.add_(1.0)
    repack(start, base, name="tiny", int8=False)
    assert run(recipe_file, tmp_path / "stopped", *changes) == 1
    assert f"The model {base} has changed since the run began" in capsys.readouterr().err
    shutil.rmtree(base)
    (tmp_path / "away").rename(base)
    assert run(recipe_file, tmp_path / "stopped", *changes) == 0
    measured = [losses((tmp_path / name / "metrics.jsonl").read_text()) for name in ("whole", "stopped")]
    assert measured[0] == measured[1]
    assert open_package(str(tmp_path / "stopped/package")).fingerprint == package.fingerprint


def test_an_adapter_and_the_head_of_a_new_model_are_trained_and_merged(recipe_file: Path, tmp_path: Path) -> None:
    encoder = "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}"
    pytest.importorskip("peft")
    lora = "{rank: 2, dropout: 0.1, train_head: true}"
    changes = [f"model={{encoder_config: {encoder}, hidden_size: 32, max_width: 4, lora: {lora}}}"]
    assert run(recipe_file, tmp_path / "run", *changes, "parallel.gradient_checkpointing=true") == 0
    measured = losses((tmp_path / "run/metrics.jsonl").read_text())
    assert measured[-1] < measured[0]
    assert "adapter" not in open_package(str(tmp_path / "run/package")).metadata
    state = torch.load(tmp_path / "run/checkpoints/00000006/engine.pt", weights_only=True)["model"]
    learnt = [name for name, weight in state.items() if ".lora_B." in name and weight.abs().max() > 0]
    assert len(learnt) == 12, "all six linear layers of both layers of the encoder"


def test_a_checkpoint_that_was_not_finished_is_not_gone_on_from(recipe_file: Path, whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run/checkpoints/00000002"
    broken.mkdir(parents=True)
    (broken / "engine.pt").write_bytes(b"half of it")
    assert run(recipe_file, tmp_path / "run") == 0
    assert losses((tmp_path / "run/metrics.jsonl").read_text()) == losses((whole / "metrics.jsonl").read_text())


def test_patience_ends_a_run_early(recipe_file: Path, tmp_path: Path) -> None:
    changes = ["schedule.patience=1", "schedule.evaluate_every=1", "optim.encoder_lr=0", "optim.head_lr=0"]
    assert run(recipe_file, tmp_path / "run", *changes) == 0
    assert len(losses((tmp_path / "run/metrics.jsonl").read_text())) == 2


def test_mentions_that_are_all_too_wide_are_refused(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model's spans have up to four words."""
    records = [{"tokenized_text": ["so"] * 7, "ner": [[i % 2, 4 + i % 2, "phrase"]]} for i in range(60)]
    (tmp_path / "wide.jsonl").write_text("\n".join(map(json.dumps, records)))
    changes = ["data.train=[wide.jsonl]", f"data.root={tmp_path}"]
    assert run(recipe_file, tmp_path / "run", *changes) == 2
    error = capsys.readouterr().err
    assert "wide.jsonl is wider than model.max_width, 4 words" in error and "at least 5" in error
    assert not (tmp_path / "run/package").exists()


def test_the_greatest_seed_trains(recipe_file: Path, tmp_path: Path) -> None:
    assert run(recipe_file, tmp_path / "run", f"seed={2**63 - 1}", "schedule.steps=1") == 0


def test_parts_of_batches_and_checkpointed_gradients_change_nothing(recipe_file: Path, tmp_path: Path) -> None:
    encoder = "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}"
    model = f"model={{encoder_config: {encoder}, hidden_size: 32, max_width: 4, dropout: 0.0, encoder_dropout: 0.0}}"
    assert run(recipe_file, tmp_path / "parts", model, "schedule.micro_tokens=120") == 0
    changes = ["schedule.micro_tokens=0", "parallel.gradient_checkpointing=true"]
    assert run(recipe_file, tmp_path / "whole", model, *changes) == 0
    expected = losses((tmp_path / "whole/metrics.jsonl").read_text())
    assert losses((tmp_path / "parts/metrics.jsonl").read_text()) == pytest.approx(expected, rel=1e-4)


def test_zero_trains_in_one_process_without_a_launcher(recipe_file: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "spanlake.cli", "train", str(recipe_file), "parallel.zero_stage=1"]
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(
        [*command, "--directory", str(tmp_path / "run")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    of_zero, of_torch = (losses((path / "metrics.jsonl").read_text()) for path in (tmp_path / "run", whole))
    assert of_zero == pytest.approx(of_torch, rel=1e-3)


def test_a_bi_encoder_is_trained_by_the_same_recipe(recipe_file: Path, tmp_path: Path) -> None:
    encoder = "{model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 64}"
    model = (
        f"model={{encoder_config: {encoder}, labels_encoder_config: {encoder}, hidden_size: 24, max_width: 4, "
        "span_head: marker_v0, dropout: 0.0, encoder_dropout: 0.0}"
    )
    changes = [model, "schedule.steps=12", "optim.encoder_lr=0.005", "optim.head_lr=0.005"]
    assert run(recipe_file, tmp_path / "run", *changes) == 0
    measured = losses((tmp_path / "run/metrics.jsonl").read_text())
    assert measured[-1] < 0.9 * measured[0]
    package = open_package(str(tmp_path / "run/package"))
    assert isinstance(package.model, BiEncoderModel) and package.config.max_labels is None
    again = [f"model={{start: {tmp_path / 'run/package'}}}", "schedule.steps=2", "optim.encoder_lr=0.001"]
    assert run(recipe_file, tmp_path / "again", *again) == 0
    after = open_package(str(tmp_path / "again/package")).model
    assert after.config == package.config
    for one, other in zip(package.model.encoders(), after.encoders(), strict=True):  # both are trained
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert any(not torch.equal(before, now) for before, now in pairs)


# --- trackers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_mlflow_and_wandb_get_what_was_measured(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow, _ = pytest.importorskip("mlflow"), pytest.importorskip("wandb")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"{(tmp_path / 'mlflow').as_uri()}"
    changes = ["logging.tensorboard=true", f"logging.mlflow={{tracking_uri: '{uri}'}}"]
    changes += ["logging.wandb={project: tiny, mode: offline}"]
    directory = tmp_path / "run"
    assert run(recipe_file, directory, *changes) == 0
    measured = losses((directory / "metrics.jsonl").read_text())
    assert [path.stat().st_size > 500 for path in (directory / "tensorboard").glob("events.*")] == [True]
    assert list((directory / "wandb").glob("offline-run-*/*.wandb"))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("spanlake")
    (logged,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(logged.info.run_id, "loss")
    assert [item.value for item in sorted(history, key=lambda item: item.step)] == pytest.approx(measured)


@pytest.mark.parametrize(
    ("module", "change"),
    [
        ("tensorboardX", "logging.tensorboard=true"),
        ("mlflow", "logging.mlflow={tracking_uri: x}"),
        ("wandb", "logging.wandb={project: x}"),
    ],
)
def test_a_tracker_that_is_not_installed_is_named(
    module: str,
    change: str,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spanlake.training import tracking

    find = tracking.find_spec
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == module else find(name))
    assert run(recipe_file, tmp_path / "run", change) == 2
    assert "pip install" in capsys.readouterr().err


# --- object storage -----------------------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[tuple[fs.S3FileSystem, str]]:
    """A server that speaks S3, as pyarrow sees it, and the URI of a directory on it."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    filesystem = fs.S3FileSystem(
        access_key="name",
        secret_key="secret",
        endpoint_override=f"{host}:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    filesystem.create_dir("lake")
    yield filesystem, f"s3://name:secret@lake/run?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_a_run_lives_in_object_storage_and_goes_on_from_there(
    recipe_file: Path, whole: Path, bucket: tuple[fs.S3FileSystem, str], capsys: pytest.CaptureFixture[str]
) -> None:
    filesystem, uri = bucket
    run_until(5, recipe_file, uri)
    assert run(recipe_file, uri) == 0
    with filesystem.open_input_stream("lake/run/metrics.jsonl") as stream:
        assert losses(stream.read().decode()) == losses((whole / "metrics.jsonl").read_text())
    package = capsys.readouterr().out.strip()
    address = uri.replace("lake/run?", "lake/run/package?")
    assert package == address.replace("name:secret@", ""), "credentials are never shown"
    assert open_package(address).fingerprint == open_package(str(whole / "package")).fingerprint


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_directory_of_another_recipe_is_refused(
    recipe_file: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe_file, whole, "optim.head_lr=0.5") == 2
    assert "optim.head_lr is 0.001 there and 0.5 here" in capsys.readouterr().err


def test_a_directory_of_a_run_on_ray_is_refused(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/ray").mkdir(parents=True)
    assert run(recipe_file, tmp_path / "run") == 2
    assert "holds a run on Ray" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_its_texts(recipe_file: Path, tmp_path: Path) -> None:
    recipe: Recipe = read_recipe(recipe_file, ["optim.head_lr=1.0e+30", "schedule.warmup=0"])
    with pytest.raises(ShortfallError, match=r"The loss of step \d+ is not finite \(among .*texts"):
        train_here(recipe, locate(str(tmp_path / "run")), _prepare)
