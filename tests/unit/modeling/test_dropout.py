"""Tests the random numbers of dropout: their rate, their independence, and their repetition by a seed."""

import pytest
import torch
from torch import nn

from spanlake.modeling.dropout import Dropout, rounded, use_cheap_dropout

N = 1 << 20


def kept(rate: float, dtype: torch.dtype = torch.float32, size: int = N) -> torch.Tensor:
    return Dropout(rate).train()(torch.ones(size, dtype=dtype)) != 0


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_rate_and_the_scale_are_right(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    output = Dropout(rate).train()(torch.full((N,), -2.0, dtype=dtype))
    assert abs(rounded(rate) - rate) <= 2**-16
    deviation = (rate * (1 - rate) / N) ** 0.5
    assert abs((output == 0).double().mean().item() - rate) < 5 * deviation + 2**-16
    values = output[output != 0].double().unique()
    assert values.tolist() == pytest.approx([-2 / (1 - rate)], rel=1e-2 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 64, 1024])
def test_neighbours_are_independent(lag: int) -> None:
    torch.manual_seed(4)
    signs = kept(0.4).double() - 0.6
    correlation = (signs[:-lag] * signs[lag:]).mean() / 0.24
    assert abs(correlation.item()) < 5 / N**0.5


def test_calls_are_independent_and_a_seed_repeats_them() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = kept(0.4), kept(0.4)
    both = ((first.double() - 0.6) * (second.double() - 0.6)).mean() / 0.24
    assert abs(both.item()) < 5 / N**0.5
    torch.set_rng_state(state)
    assert torch.equal(kept(0.4), first) and torch.equal(kept(0.4), second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    values = torch.randn(7, 33, dtype=dtype).t().requires_grad_()  # not contiguous, and of an odd size
    output = Dropout(0.4).train()(values)
    upward = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, values, upward)
    scale = 1 / (1 - rounded(0.4))
    assert 0 < int((output == 0).sum()) < output.numel()
    torch.testing.assert_close(gradient, upward * (output != 0) * scale, rtol=1e-2, atol=0)
    torch.testing.assert_close(output, values * (output != 0) * scale, rtol=1e-2, atol=0)


def test_nothing_is_dropped_in_evaluation_or_at_rate_0() -> None:
    values = torch.randn(5)
    assert Dropout(0.4).eval()(values) is values
    assert torch.equal(Dropout(0.0).train()(values), values)
    assert not Dropout(1.0).train()(values).any()


def test_every_dropout_of_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), nn.Dropout2d(0.2))
    use_cheap_dropout(module)
    assert [(type(m), m.p) for m in module.modules() if hasattr(m, "p")] == [
        (Dropout, 0.3),
        (Dropout, 0.1),
        (nn.Dropout2d, 0.2),
    ]
