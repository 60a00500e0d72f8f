"""`spanlake plan`: replicas and cost for a load, from the speed of one replica."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from spanlake import cli
from spanlake.errors import UserError
from spanlake.serving.plan import Capacity, Speed, capacity, measure

FAST = Speed(texts_per_second=100.0, seconds_alone=0.02)


def planned(texts_per_day: float, p99: float = 10.0, peak: float = 1.0, price: float | None = None) -> Capacity:
    return capacity(FAST, texts_per_day, peak, p99, price)


def test_replicas_follow_the_load_the_peak_and_the_latency() -> None:
    assert planned(1).replicas == 1
    assert planned(8_640_000).replicas == 2  # 100 texts a second, and a replica is at most 80 % busy
    assert planned(8_640_000, peak=3).replicas == 4
    assert planned(8_640_000, peak=3).replicas_on_average == 2
    by_latency = [planned(8_640_000, p99).replicas for p99 in (0.08, 0.1, 0.2, 1.0)]
    assert by_latency == sorted(by_latency, reverse=True) and by_latency[0] > by_latency[-1]


def test_the_cost_is_that_of_the_replicas_on_average() -> None:
    found = planned(8_640_000, peak=3, price=0.5)
    assert found.cost_per_month == 2 * 0.5 * 24 * 30
    assert found.cost_per_million_texts == pytest.approx(24 / 8.64)
    assert planned(1).cost_per_month is None


def test_a_latency_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"--p99 is 0.01 s, and one replica needs 0.066 s"):
        planned(1, p99=0.01)


def test_the_latency_holds_in_a_simulated_queue() -> None:
    """At the load that the plan allows, 99 % of requests with random arrivals and random work are answered in time."""
    p99 = 0.2
    found = planned(8_640_000, p99)
    choice = random.Random(1)
    free = now = 0.0
    stays = []
    for _ in range(200_000):
        now += choice.expovariate(FAST.texts_per_second * found.busy)
        free = max(free, now) + choice.expovariate(FAST.texts_per_second)
        stays.append(free - now + FAST.seconds_alone)
    late = sum(stay > p99 for stay in stays) / len(stays)
    assert 0.002 < late < 0.015


def test_measuring_calls_with_all_texts_and_with_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanlake.serving.plan._SECONDS", 0.0)
    calls: list[int] = []

    def extract(texts: Sequence[str]) -> None:
        calls.append(len(texts))

    speed = measure(extract, ["a", "b", "c"])
    assert calls == [1, 3, 1, 1, 1]
    assert speed.texts_per_second > 0 and speed.seconds_alone > 0


def test_the_command(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanlake.serving.plan._SECONDS", 0.0)
    (tmp_path / "texts.txt").write_text("Ada met Charles in London\n\nMarie Curie\n")
    call = ["plan", "--texts-per-day", "1e6"]
    sample = ["--labels", "person", "--texts", str(tmp_path / "texts.txt"), "--model", str(tiny_model_dir)]
    assert cli.main([*call, *sample, "--p99", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_texts_per_second"] == pytest.approx(34.7, abs=0.1) and found["replicas"] >= 1
    assert cli.main([*call, "--rate", "50", "--price", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "replicas:    1 at the peak, 1 on average" in printed and "288.00 in 30 days" in printed


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "give --rate, or --texts and --labels"),
        (["--rate", "5", "--texts", "texts.txt"], "--rate gives the speed"),
        (["--rate", "0"], "'0' is not a number above 0"),
        (["--rate", "nan"], "'nan' is not a number above 0"),
        (["--labels", "person", "--texts", "absent.txt"], "cannot be read"),
    ],
)
def test_wrong_calls(more: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["plan", "--texts-per-day", "10", *more])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    assert says in capsys.readouterr().err
