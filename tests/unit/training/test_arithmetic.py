"""Compares the counted arithmetic of a step with what PyTorch counts while the step runs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spanlake.modeling.config import SpanHeadKind
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch
from spanlake.package import open_package
from spanlake.training.arithmetic import matrix_rate, step_flops
from spanlake.training.engine import make_engine
from spanlake.training.recipe import Recipe

LABELS, WORDS = 3, 30


@pytest.mark.parametrize("kind", ["paper", "marker_v0", "marker", "token_level"])
def test_the_count_is_that_of_the_products_that_run(kind: SpanHeadKind) -> None:
    config = open_package("mini").config
    encoder = {**config.encoder, "vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96}
    model = SpanModel(replace(config, span_head=kind, hidden_size=32, encoder=encoder)).double()
    length = 2 * LABELS + WORDS
    batch = Batch(
        torch.arange(1, length + 1).unsqueeze(0),
        torch.ones(1, length, dtype=torch.int64),
        torch.arange(2 * LABELS, length).unsqueeze(0),
        torch.arange(0, 2 * LABELS, 2).unsqueeze(0),
        [WORDS],
        [LABELS],
    )
    recipe = Recipe.model_validate({"name": "a", "model": {"start": "mini"}, "data": {"train": ["a"]}})
    engine = make_engine(recipe, model, torch.device("cpu"), 1, universal=False)
    with FlopCounterMode(display=False) as counted:
        engine.forward(batch).sum().backward()
    assert step_flops(model, batch) == counted.get_total_flops()


def test_a_weight_that_is_not_trained_takes_two_products_of_three() -> None:
    model = open_package("mini").model
    batch = Batch(*(torch.ones(1, 4, dtype=torch.int64) for _ in range(4)), [4], [4])
    whole = step_flops(model, batch)
    frozen = sum(
        weight.numel() for name, weight in model.encoder.named_parameters() if "encoder." in name and weight.dim() == 2
    )
    model.encoder.requires_grad_(False)
    assert whole - step_flops(model, batch) == 2 * 4 * frozen


def test_the_matrix_rate_is_at_least_a_rate_that_any_machine_reaches() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32) > 1e8
