"""Fills a model from the tensors of a file, and lets two models hold equal tensors once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spanlake.errors import PackageError
from spanlake.modeling.model import SpanModel


def load_weights(model: SpanModel, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], source: str) -> None:
    """Makes `tensors` the weights of `model`, without a copy of those in float32.

    `names` maps the name of each tensor of `model` to its name in `tensors`.

    Every weight is filled, and every tensor is used.

    Raises `PackageError`, which names `source`, for a tensor that is missing, extra or misshapen.
    """
    expected = {names[key]: tensor.shape for key, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        parts = [f"{len(missing)} are missing, such as {missing[0]}"] if missing else []
        parts += [f"{len(extra)} do not belong, such as {extra[0]}"] if extra else []
        raise PackageError(f"The weights of {source} do not fit its architecture: {' and '.join(parts)}.")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise PackageError(
                f"The weights of {source} do not fit its architecture: {name} has the shape "
                f"{list(tensors[name].shape)}, not {list(shape)}."
            )
    state = model.state_dict()
    model.load_state_dict({key: tensors[name].to(state[key].dtype) for key, name in names.items()}, assign=True)


def share_weights(model: SpanModel, other: SpanModel) -> None:
    """Makes `model` hold those weights of `other` that are equal to its own, so that memory holds them once.

    Weights on another device or in another precision are not shared. Neither model may change its weights afterwards.
    """
    held = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        same = held.get(name)
        if same is None or (same.device, same.dtype) != (weight.device, weight.dtype):
            continue
        if torch.equal(same, weight):  # False for another shape
            weight.data = same.data
