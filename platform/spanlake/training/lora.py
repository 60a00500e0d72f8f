"""LoRA on the encoder of a model in training, by the peft library (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from spanlake.errors import UserError, shown
from spanlake.modeling.families import unfilled_model
from spanlake.modeling.lora import DOWN, UP, changed
from spanlake.modeling.model import SpanModel
from spanlake.modeling.weights import load_weights
from spanlake.training.recipe import LoraSection

_ADAPTER = "default"  # peft's name for the only adapter of a model
_BASE = ".base_layer."  # in the names of the weights of a layer that has an adapter


def add_lora(model: SpanModel, lora: LoraSection) -> None:
    """Adds low-rank matrices to linear layers of the encoder. Only these, and the head if it says so, are trained.

    A is random, from torch's global generator, and B is zero. Raises `UserError` where peft is not installed, and for
    targets that the encoder does not have.
    """
    if find_spec("peft") is None:
        raise UserError("model.lora needs peft, which is not installed: pip install 'spanlake[lora]'.")
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = lora.alpha  # peft computes with fractions, though its type says int
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=_layers(model.encoder, lora.targets),
    )
    for parameter in model.parameters():
        parameter.requires_grad_(lora.train_head)
    for encoder in model.encoders():
        encoder.requires_grad_(False)
    inject_adapter_in_model(config, model.encoder, _ADAPTER)  # freezes the other weights of the encoder


def like(model: SpanModel, lora: LoraSection | None) -> SpanModel:
    """Returns a model with the layers of `model`, which has the adapter of `lora`, and other weights."""
    copy = type(model)(model.config)
    if lora:
        add_lora(copy, lora)
    return copy


def changes_of(model: SpanModel, lora: LoraSection) -> dict[str, torch.Tensor]:
    """Returns the weights that were trained, named as `changed` wants them."""
    state = model.state_dict()
    frozen = "encoder.", "labels.encoder."
    found = {name: state[name] for name in state if lora.train_head and not name.startswith(frozen)}
    for kind in (DOWN, UP):
        ending = f".{kind}.{_ADAPTER}.weight"
        found |= {name.removesuffix(ending) + f".{kind}": state[name] for name in state if name.endswith(ending)}
    return found


def merged(model: SpanModel, lora: LoraSection) -> SpanModel:
    """Returns a model without an adapter that computes the same. It shares the weights that are not trained."""
    weights = _weights(model.state_dict())
    weights |= changed(weights, changes_of(model, lora), lora.alpha / lora.rank, "the run")
    copy = unfilled_model(model.config)
    load_weights(copy, weights, {name: name for name in weights}, "the run")
    return copy


def _weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights without those of the adapter, under the names of a model without one."""
    return {
        name.replace(_BASE, "."): tensor
        for name, tensor in state.items()
        if f".{DOWN}.{_ADAPTER}." not in name and f".{UP}.{_ADAPTER}." not in name
    }


def _layers(encoder: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Returns the names of the linear layers that `targets` name by their last part, or of all of them.

    Raises `UserError` for a target that is not the name of a linear layer.
    """
    layers = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    known = {name.rpartition(".")[2] for name in layers}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise UserError(
            f"model.lora.targets names {shown(unknown[0])}, which is no linear layer of the encoder; its linear layers "
            f"are {', '.join(sorted(known))}."
        )
    return [name for name in layers if not targets or name.rpartition(".")[2] in targets]
