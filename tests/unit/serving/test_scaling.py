"""How many replicas the policy wants, and what the command line refuses."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ROOT

from spanlake.cli import main
from spanlake.errors import UserError
from spanlake.serving.config import ServeConfig, read_config
from spanlake.serving.keys import add_key, read_keys
from spanlake.serving.scaling import QueuePolicy


@dataclass
class Reported:
    aggregated_metrics: dict[str, dict[str, float]] | None
    current_num_replicas: int = 2


@pytest.mark.parametrize(
    ("queued", "busy", "wanted"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1),
        ([0.4, 0.4], [0.9, 0.9], 3),  # no queue to speak of, but 1.8 replicas' work at 0.8 each
        ([0.4, 0.4], [0.8, 0.8], 2),
        ([3.0, 2.5], [1.0, 1.0], 6),
        ([0.0, 0.0, 0.0], [0.1, 0.1, 0.1], 1),
    ],
)
def test_replicas_for_a_load(queued: list[float], busy: list[float], wanted: int) -> None:
    metrics = {
        "queue_seconds": {f"r{i}": value for i, value in enumerate(queued)},
        "busy": {f"r{i}": value for i, value in enumerate(busy)},
    }
    assert QueuePolicy()(Reported(metrics)) == (wanted, {})


@pytest.mark.parametrize("metrics", [None, {}, {"queue_seconds": {}}])
def test_without_reports_replicas_stay(metrics: dict[str, dict[str, float]] | None) -> None:
    assert QueuePolicy()(Reported(metrics, 3)) == (3, {})


def test_settings_of_the_shipped_configuration_are_known() -> None:
    import yaml

    document = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    [application] = document["applications"]
    config = read_config(application["args"])
    assert config.limits == ServeConfig().limits
    [deployment] = application["deployments"]
    assert deployment["graceful_shutdown_timeout_s"] > config.limits.request_seconds


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modell": "mini"}, "modell"),
        ({"limits": {"texts": 0}}, "limits.texts is 0"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ([], "the settings"),
    ],
)
def test_a_wrong_setting_is_named(values: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_config(values)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--port", "0"], "port from 1 to 65535"),
        (["serve", "--replicas", "none"], "whole number"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "tpu", "--config", "missing.yaml"], "missing.yaml"),
        (["--keys", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_served_is_said_before_ray_starts(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    assert main(["serve", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.yaml"
    assert main(["key", "search", "--file", str(file), "--requests-per-minute", "60"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) > 40 and key not in file.read_text()
    assert read_keys(file).admit(key) == "search"
    assert main(["key", "search", "--file", str(file)]) == 2
    add_key(file, "other", None)
    assert read_keys(file).admit(key) == "search"
    file.write_text("search: {sha256: xyz}")
    with pytest.raises(UserError, match="sha256"):
        read_keys(file)
