"""Compares the counted arithmetic of a step with what PyTorch counts while the step runs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spanlake.modeling.config import SpanHeadKind
from spanlake.modeling.label_tokens import LabelledBatch
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch
from spanlake.package import open_package
from spanlake.training.arithmetic import matrix_rate, step_flops
from spanlake.training.engine import make_engine
from spanlake.training.recipe import Recipe
from tests.support.bi_encoder import save_bi_encoder

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


def test_the_count_of_a_bi_encoder_has_its_labels_encoder(tmp_path: Path) -> None:
    model = open_package(str(save_bi_encoder(tmp_path / "package"))).model.double()
    batch = LabelledBatch(
        torch.arange(1, WORDS + 1).unsqueeze(0),
        torch.ones(1, WORDS, dtype=torch.int64),
        torch.arange(WORDS).unsqueeze(0),
        torch.tensor([[1, 0]]),
        [WORDS],
        [2],
        torch.arange(1, 4 * LABELS + 1).view(LABELS, 4),
        torch.ones(LABELS, 4, dtype=torch.int64),
    )
    with FlopCounterMode(display=False) as counted:
        model(batch).sum().backward()
    assert step_flops(model, batch) == counted.get_total_flops()


def test_weights_that_zero_keeps_in_parts_are_counted() -> None:
    pytest.importorskip("deepspeed")
    code = """
import torch, torch.distributed as dist
from spanlake.modeling.tokens import Batch
from spanlake.package import open_package
from spanlake.training.arithmetic import step_flops
from spanlake.training.engine import make_engine
from spanlake.training.recipe import Recipe
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
values = {"name": "a", "model": {"start": "mini"}, "data": {"train": ["a"]}, "parallel": {"zero_stage": 3}}
model = open_package("mini").model
batch = Batch(*(torch.ones(1, 4, dtype=torch.int64) for _ in range(4)), [4], [4])
before = step_flops(model, batch)
make_engine(Recipe.model_validate(values), model, torch.device("cpu"), 1, universal=False)
assert not any(weight.numel() for weight in model.encoder.parameters())
assert step_flops(model, batch) == before > 0
"""
    environment = dict(os.environ, LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
