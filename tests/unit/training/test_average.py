"""The average of a model's weights."""

from pathlib import Path

import pytest
import torch

from spanlake.package import open_package
from spanlake.training.average import Average


def test_the_average_keeps_its_share_of_each_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    """With decay 0.5; the first two steps keep 2/11 and 3/12, and the ninth 10/19 at most."""
    model = open_package(str(tiny_model_dir)).model
    weight = next(model.parameters())
    began = weight.detach().clone()
    average = Average(model, 0.5)

    def after(step: int, value: float) -> float:
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)
        averaged = next(average.model().parameters())
        return float((averaged.detach() - began * share).mean())

    share = 2 / 11
    assert after(1, 1.0) == pytest.approx(9 / 11, abs=1e-6)
    share = 2 / 11 * 3 / 12
    assert after(2, 2.0) == pytest.approx(9 / 11 * 3 / 12 + 2 * 9 / 12, abs=1e-6)
    before, share = next(average.model().parameters()).detach().clone(), 0.0
    after(9, 3.0)
    torch.testing.assert_close(next(average.model().parameters()).detach(), before * 0.5 + 3 * 0.5)
    assert weight[0, 0] == 3.0

    average.save(tmp_path)
    other = Average(open_package(str(tiny_model_dir)).model, 0.5)
    other.load(tmp_path)
    for name, value in average.model().state_dict().items():
        torch.testing.assert_close(other.model().state_dict()[name], value)
