"""Learning rates, groups of parameters, and the updates they lead to."""

from pathlib import Path

import pytest
import torch

from spanlake.package import open_package
from spanlake.training.optimiser import adamw, parameter_groups, rate_at
from spanlake.training.recipe import OptimSection, ScheduleSection


@pytest.mark.parametrize(("decay", "half_way"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_the_rate_rises_then_falls_as_the_recipe_says(decay: str, half_way: float) -> None:
    schedule = ScheduleSection(steps=110, warmup=0.1, decay=decay)
    rates = [rate_at(step, schedule) for step in range(112)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[11] == 1.0 == max(rates)
    assert sum(rates[60:62]) / 2 == pytest.approx(half_way)
    assert rates[110] == rates[111] == pytest.approx(1.0 if decay == "constant" else 0.0)


def test_a_run_without_warm_up_starts_at_the_highest_rate(tiny_model_dir: Path) -> None:
    assert rate_at(0, ScheduleSection(steps=10, warmup=0.0)) == 1.0


def test_every_parameter_is_in_one_group_with_its_part_s_rate(tiny_model_dir: Path) -> None:
    model = open_package(str(tiny_model_dir)).model
    groups = parameter_groups(model, OptimSection(encoder_lr=1e-5, head_lr=5e-5, weight_decay=0.01))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        assert group["lr"] == (1e-5 if name.startswith("encoder.") else 5e-5), name
        plain = name.endswith(".bias") or "LayerNorm" in name
        assert group["weight_decay"] == (0.0 if plain else 0.01), name


def test_adamw_decays_the_weights_that_it_should(tiny_model_dir: Path) -> None:
    model = open_package(str(tiny_model_dir)).model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = adamw(model, OptimSection(encoder_lr=1e-2, head_lr=1e-1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        rate = 1e-2 if name.startswith("encoder.") else 1e-1
        kept = 1.0 if name.endswith(".bias") or "LayerNorm" in name else 1 - 0.5 * rate
        torch.testing.assert_close(parameter.detach(), before[name] * kept)
