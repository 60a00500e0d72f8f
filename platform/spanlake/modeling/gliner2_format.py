"""Reads published GLiNER2 checkpoints of the architecture `span`, of which it takes the part that finds entities.

    config.json                               model_type `extractor`, the architecture and its settings
    encoder_config/config.json                the configuration of the encoder
    model.safetensors or pytorch_model.bin    the tensors, under the names of `_TENSORS`
    tokenizer.json, tokenizer_config.json     with the tokens of the prompt

Reading is strict, as in `gliner_format`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from spanlake.errors import PackageError
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.counting import COUNTING_KINDS
from spanlake.modeling.families import unfilled_model
from spanlake.modeling.gliner_format import read_tensors
from spanlake.modeling.model import SpanModel, encoder_config, encoder_values
from spanlake.modeling.pretrained import pretrained_tokenizer
from spanlake.modeling.weights import load_weights

CONFIG = "config.json"
ENCODER = "encoder_config/config.json"

# In the order in which training added them to the tokenizer.
_TOKENS = (
    *("[SEP_STRUCT]", "[SEP_TEXT]", "[P]", "[C]", "[E]", "[R]", "[L]"),
    *("[EXAMPLE]", "[OUTPUT]", "[DESCRIPTION]"),
)
# Settings that change what a checkpoint computes; the first value is that of a checkpoint without the setting.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "architecture": ("span",),
    "counting_layer": COUNTING_KINDS,
    "token_pooling": ("first",),
}
# The prefixes of our tensor names and of the published ones.
_TENSORS = {
    "encoder.": "encoder.",
    "counting.count.": "count_pred.",
    "counting.step.": "count_embed.pos_embedding.",
    "counting.cell.": "count_embed.gru.",
    "counting.out.transformer.": "count_embed.transformer.transformer.",
    "counting.out.in_projector.": "count_embed.transformer.in_projector.",
    "counting.out.out_projector.": "count_embed.transformer.out_projector.",
    "counting.out.": "count_embed.",
    "spans.start.": "span_rep.span_rep_layer.project_start.",
    "spans.end.": "span_rep.span_rep_layer.project_end.",
    "spans.joined.": "span_rep.span_rep_layer.out_project.0.",
    "spans.out.": "span_rep.span_rep_layer.out_project.3.",
}
# Tensors of classification, and those that no forward pass uses.
_UNUSED = re.compile(r"classifier\..*|encoder\.(pooler\..*|embeddings\.(position_ids|token_type_ids))")
_EMBEDDINGS = re.compile(r"encoder\..*(word|tok)_embeddings\.weight")


def is_gliner2(values: Any) -> bool:
    """Returns whether the content of a config.json is that of a GLiNER2 checkpoint."""
    return isinstance(values, dict) and values.get("model_type") == "extractor"


def read_gliner2(directory: Path) -> tuple[SpanModel, Tokenizer]:
    """Returns the model and the tokenizer in `directory`: float32, on the CPU, in evaluation mode.

    Raises `PackageError` for another architecture, for a tensor that is missing, extra or misshapen, and for a
    tokenizer that cannot be found or does not fit the tensors.
    """
    values = _read_json(directory / CONFIG)
    settings = {key: values.get(key) or supported[0] for key, supported in _SUPPORTED.items()}
    for key, value in settings.items():
        if value not in _SUPPORTED[key]:
            allowed = " or ".join(map(json.dumps, _SUPPORTED[key]))
            raise PackageError(
                f"{directory} is a GLiNER2 checkpoint with {key} {json.dumps(value)}; this version reads those with "
                f"{allowed}."
            )
    head = values.get("span_head") or {}
    if not isinstance(head, dict):
        raise PackageError(f"{directory / CONFIG} has span_head {json.dumps(head)}; fetch the checkpoint again.")
    span_mode, width = head.get("span_mode", "markerV0"), head.get("max_width") or values.get("max_width") or 8
    if span_mode != "markerV0":
        raise PackageError(
            f"{directory} is a GLiNER2 checkpoint with span_mode {json.dumps(span_mode)}; this version reads those "
            'with "markerV0".'
        )
    tensors = {name: tensor for name, tensor in read_tensors(directory).items() if not _UNUSED.fullmatch(name)}
    tokenizer = pretrained_tokenizer(str(directory))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _TOKENS])
    embeddings = [tensor for name, tensor in tensors.items() if _EMBEDDINGS.fullmatch(name)]
    if len(embeddings) != 1 or len(embeddings[0]) < tokenizer.get_vocab_size():
        raise PackageError(
            f"The tokenizer of {directory} does not belong to its weights: it has {tokenizer.get_vocab_size()} tokens, "
            f"but the embeddings have {len(embeddings[0]) if embeddings else 'no'} rows; fetch the checkpoint again."
        )
    encoder = encoder_config({**_read_json(directory / ENCODER), "vocab_size": len(embeddings[0])})
    entity, counter = tokenizer.token_to_id("[E]"), tokenizer.token_to_id("[P]")
    assert entity is not None and counter is not None, "they have just been added"
    config = ModelConfig(
        encoder=encoder_values(encoder),
        hidden_size=encoder.hidden_size,
        span_head="marker_v0",
        entity_token="[E]",
        separator_token="[SEP_TEXT]",
        entity_token_id=entity,
        max_width=width,
        dropout=head.get("dropout", 0.1),
        max_labels=None,
        splitter="gliner2",
        counting=settings["counting_layer"],
        counter_token_id=counter,
    )
    model = unfilled_model(config)
    load_weights(model, tensors, _names(model), str(directory))
    return model, tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be read as JSON ({error}); fetch the checkpoint again.") from error
    if not isinstance(values, dict):
        raise PackageError(f"{path} holds no settings; fetch the checkpoint again.")
    return values


def _names(model: SpanModel) -> dict[str, str]:
    """Returns the published name of each tensor of `model`, by our name."""
    names = {}
    for key in model.state_dict():
        ours = next(prefix for prefix in _TENSORS if key.startswith(prefix))
        names[key] = _TENSORS[ours] + key.removeprefix(ours)
        if ours == "counting.cell.":  # one step of a network of one layer
            names[key] += "_l0"
    return names
