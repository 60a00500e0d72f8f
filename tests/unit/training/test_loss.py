"""The loss against its formula, one span and one type at a time, in float64."""

import math

import pytest
import torch

from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

WORDS, TYPES = [3, 1], [2, 1]  # of two texts


def by_formula(logits: torch.Tensor, targets: torch.Tensor, optim: OptimSection) -> torch.Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for text, (words, types) in enumerate(zip(WORDS, TYPES, strict=True)):
        for i in range(words):
            for k in range(min(2, words - i)):
                for c in range(types):
                    z, true = logits[text, i, k, c].double(), targets[text, i, k, c] == 1
                    right = torch.sigmoid(z if true else -z)
                    one = -right.log() * (optim.positive_weight if true else 1)
                    if optim.loss == "focal":
                        alpha = optim.focal_alpha if true else 1 - optim.focal_alpha
                        one = one * alpha * (1 - right) ** optim.focal_gamma
                    loss = loss + one
    return loss


@pytest.mark.parametrize(
    "optim",
    [
        OptimSection(),
        OptimSection(positive_weight=3.0),
        OptimSection(loss="focal", focal_alpha=0.75, focal_gamma=2.0),
        OptimSection(loss="focal", focal_alpha=0.3, focal_gamma=0.5, positive_weight=2.0),
        OptimSection(loss="focal", focal_alpha=0.5, focal_gamma=0.0),
    ],
    ids=["bce", "positive weight", "focal", "focal, other values", "focal without focus"],
)
def test_the_loss_and_its_gradient_equal_the_formula_over_real_spans_and_types(optim: OptimSection) -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 2, 2).mul_(2).requires_grad_()
    targets = torch.zeros(2, 3, 2, 2)
    targets[0, 0, 1, 0] = targets[1, 0, 0, 0] = 1
    expected = by_formula(logits, targets, optim)
    loss = span_loss(logits, targets.nonzero().T, WORDS, TYPES, optim)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (mine,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not mine[0, 2, 1].any() and not mine[1, 1:].any() and not mine[1, 0, 0, 1].any()  # no spans, or no type


@pytest.mark.parametrize(("loss", "gamma"), [("bce", 0.0), ("focal", 0.0), ("focal", 0.5), ("focal", 2.0)])
@pytest.mark.parametrize("sure", [50.0, 1000.0])
def test_certain_scores_give_finite_losses_and_gradients(loss: str, gamma: float, sure: float) -> None:
    logits = torch.tensor([sure, -sure, sure, -sure]).view(1, 2, 1, 2).requires_grad_()
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 2, 1, 2)  # right, right, wrong, wrong
    optim = OptimSection(loss=loss, focal_alpha=0.5, focal_gamma=gamma)
    total = span_loss(logits, targets.nonzero().T, [2], [2], optim)
    assert total.item() == pytest.approx(2 * sure * (0.5 if loss == "focal" else 1))
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert math.isclose(gradient[0, 1, 0, 0].item(), 0.5 if loss == "focal" else 1)
