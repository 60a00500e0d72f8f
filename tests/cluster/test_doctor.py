"""`spanlake doctor` with a real cluster."""

import json

import pytest
import ray

from spanlake import cli


def test_it_says_what_the_cluster_has(
    cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert cli.main(["doctor", "--json"]) == 0
    [check] = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "Ray cluster"]
    assert check["verdict"] == "ok", check
    assert f"{ray.cluster_resources()['CPU']:g} CPU" in check["says"]
