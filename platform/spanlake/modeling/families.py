"""The families of models: the class that a configuration describes."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from spanlake.modeling.bert import is_bert
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.gliner2 import Gliner2Model
from spanlake.modeling.model import SpanModel, build_encoder
from spanlake.modeling.unfilled import Unfilled

# `no_init_weights` sets a switch of the whole process and then restores it: two threads at once could leave it set.
_UNFILLED = threading.Lock()


def model_class(config: ModelConfig) -> type[SpanModel]:
    if config.labels_encoder is not None:
        return BiEncoderModel
    return SpanModel if config.counting is None else Gliner2Model


def unfilled_model(config: ModelConfig) -> SpanModel:
    """Returns the model in evaluation mode, with weights that `load_weights` is still to set.

    Random initial weights would take most of the time of loading.
    """
    encoders = [None if is_bert(values) else _uninitialised_encoder(values) for values in config.encoders]
    with torch.device("meta"), Unfilled():
        return model_class(config)(config, *encoders).eval()


def _uninitialised_encoder(values: dict[str, Any]) -> nn.Module:
    """Returns an encoder of the transformers library. It is on the CPU, as it may hold more than is saved of it."""
    from transformers.initialization import no_init_weights

    with _UNFILLED, no_init_weights():
        return build_encoder(values)
