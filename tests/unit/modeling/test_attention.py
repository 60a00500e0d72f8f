"""Compares attention for training on a CPU with its formula in float64, and a model's gradients with and without it."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spanlake.modeling.attention import Attention
from spanlake.modeling.cpu import prepare_cpu_training
from spanlake.modeling.dropout import Dropout, rounded
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch
from spanlake.modeling.transformers_attention import NAME
from spanlake.package import open_package

A, N, D = 3, 13, 13
SPANS = [(0, 7), (8, 12)]  # sub-words 7 and 12 are padding


def by_formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns the output [A, N, D]. `keep` [A, N, N] is 1 where a probability is kept."""
    text = torch.full((N,), -1)
    for number, (first, stop) in enumerate(SPANS):
        text[first:stop] = number
    seen = text.unsqueeze(1) == text
    weights = (q @ k.transpose(1, 2)).masked_fill(~seen, -math.inf).softmax(-1)
    return (weights * keep / (1 - rounded(rate)) @ v) * (text >= 0).unsqueeze(1)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_values_and_gradients_equal_the_formula(rate: float) -> None:
    torch.manual_seed(1)
    q, k, v, upward = (torch.randn(A, N, D, dtype=torch.float64) for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    state = torch.get_rng_state()
    weights = Attention.apply(q, k, torch.eye(N, dtype=torch.float64).expand(A, N, N).contiguous(), SPANS, rate)
    keep = (weights != 0).double()
    if rate:
        real = sum(A * (stop - first) ** 2 for first, stop in SPANS)
        assert 0.1 < 1 - keep.sum().item() / real < 0.5
    torch.set_rng_state(state)
    output = Attention.apply(*inputs, SPANS, rate)
    expected = by_formula(*inputs, keep, rate)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(
        torch.autograd.grad(output, inputs, upward), torch.autograd.grad(expected, inputs, upward), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.fixture(params=["bert", "electra"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> SpanModel:
    """Returns the tiny model with an encoder of this package, and with one of the transformers library."""
    tiny = open_package(str(tiny_model_dir)).model
    if request.param == "bert":
        return tiny
    encoder = tiny.config.encoder | {"model_type": "electra", "embedding_size": 32}
    torch.manual_seed(1)
    return SpanModel(replace(tiny.config, encoder=encoder)).eval()


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(7, 60, (3, 20), generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([20, 13, 9]).unsqueeze(1)
    words = torch.arange(4, 12).expand(3, -1)
    return Batch(ids, (torch.arange(20) < counts).long(), words % counts, torch.ones(3, 2).long(), [8, 8, 5], [2, 2, 2])


def gradients(model: SpanModel, batch: Batch, *, half: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits, and all gradients of the mean of their squares as one vector."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = model(batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(logits.square().mean(), parameters, allow_unused=True)
    return logits, torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("half", [False, True])
def test_a_prepared_model_computes_the_same(model: SpanModel, batch: Batch, half: bool) -> None:
    expected_logits, expected = gradients(model, batch, half=False)
    plain = gradients(model, batch, half=half)
    prepared = copy.deepcopy(model)
    prepare_cpu_training(prepared)
    if model.config.encoder["model_type"] == "electra":
        assert prepared.encoder.config._attn_implementation == NAME
    logits, found = gradients(prepared, batch, half=half)  # the model is in evaluation mode, so nothing is dropped
    if not half:
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(found, expected)
    else:  # about as close to float32 as the transformers library's own attention in bfloat16
        for mine, theirs, true in zip((logits, found), plain, (expected_logits, expected), strict=True):
            assert (mine - true).norm() < 2 * (theirs - true).norm() + 1e-3 * true.norm()
    with torch.no_grad():
        torch.testing.assert_close(prepared(batch), model(batch), rtol=0, atol=0)


def test_a_prepared_model_drops_at_the_configured_rate_and_a_seed_repeats_it(model: SpanModel, batch: Batch) -> None:
    prepare_cpu_training(model)
    rates = [module.p for module in model.encoder.modules() if isinstance(module, Dropout)]
    assert rates and set(rates) == {0.1}  # the configuration's default
    model.train()
    state = torch.get_rng_state()
    first, second = gradients(model, batch, half=True), gradients(model, batch, half=True)
    torch.set_rng_state(state)
    again = gradients(model, batch, half=True)
    assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
    assert not torch.equal(second[0], first[0])


def test_gradient_checkpointing_drops_the_same_twice(model: SpanModel, batch: Batch) -> None:
    prepare_cpu_training(model)
    model.train()
    state = torch.get_rng_state()
    _, expected = gradients(model, batch, half=True)
    model.encoder.gradient_checkpointing_enable()
    torch.set_rng_state(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch).square().mean().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected)
