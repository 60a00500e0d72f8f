"""Reads and writes published GLiNER checkpoints of uni-encoders and bi-encoders, of spans and of tokens.

    gliner_config.json                        the architecture, mixed with settings of its training
    model.safetensors or pytorch_model.bin    the tensors, under the names of `_TENSORS`
    tokenizer.json, tokenizer_config.json     optional; without them the tokenizer is the encoder's
    labels_tokenizer/                         optional, of a bi-encoder; without it, that of its labels encoder

Reading is strict: an unsupported setting, or parts that do not fit together, raise an error that names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from spanlake.errors import PackageError, one_line
from spanlake.modeling.config import RELATIVE_POSITION_WINDOW, ModelConfig, SpanHeadKind, window_of
from spanlake.modeling.families import unfilled_model
from spanlake.modeling.model import WITH_DECODER, SpanModel, encoder_config, encoder_values
from spanlake.modeling.pretrained import pretrained_tokenizer
from spanlake.modeling.tokens import unknown_token
from spanlake.modeling.weights import load_weights
from spanlake.splitters.libraries import LIBRARIES

CONFIG = "gliner_config.json"
WEIGHTS = "model.safetensors"
OLD_WEIGHTS = "pytorch_model.bin"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
LABELS_TOKENIZER = "labels_tokenizer"

_SPLITTERS = {"whitespace": "gliner"}  # other names are the same in both libraries
_SPAN_MODES: dict[str, SpanHeadKind] = {"markerV0": "marker_v0", "marker": "marker", "token_level": "token_level"}

# The values of settings that a checkpoint leaves out. A null in a checkpoint counts as left out.
_DEFAULTS: dict[str, Any] = {
    "model_name": "microsoft/deberta-v3-small",
    "span_mode": "markerV0",
    "hidden_size": 512,
    "max_width": 12,
    "max_len": 384,
    "dropout": 0.4,
    "ent_token": "<<ENT>>",
    "sep_token": "<<SEP>>",
    "class_token_index": -1,
    "vocab_size": -1,
    "embed_ent_token": True,
    "words_splitter_type": "whitespace",
}

# Settings that change what a checkpoint computes, and their values for the architecture of this module. All other
# settings concern training, or architectures that these values exclude.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": (
        None,
        "gliner",
        "gliner_base",
        "gliner_uni_encoder",
        "gliner_uni_encoder_span",
        "gliner_uni_encoder_token",
        "gliner_bi_encoder",
        "gliner_bi_encoder_span",
        "gliner_bi_encoder_token",
    ),
    "span_mode": tuple(_SPAN_MODES),
    "subtoken_pooling": (None, "first"),
    "words_splitter_type": ("whitespace", *LIBRARIES),
    "fuse_layers": (None, False),
    "labels_decoder": (None,),
    "relations_layer": (None,),
    "span_encoder_config": (None,),
    "represent_spans": (None, False),
    "precomputed_prompts_mode": (None, False),
    "num_rnn_layers": (None, 0, 1),  # the tensors decide: old checkpoints without an LSTM say 1
}

# The prefixes of our tensor names and of the published ones. Those of the head's joint layer depend on its kind.
_ENCODERS = {
    "encoder.": "token_rep_layer.bert_layer.model.",
    "labels.encoder.": "token_rep_layer.labels_encoder.model.",
}
_TENSORS: dict[str, str] = {
    "projection.": "token_rep_layer.projection.",
    "labels.projection.": "token_rep_layer.labels_projection.",
    "lstm.": "rnn.lstm.",
    "types.": "prompt_rep_layer.",
    "spans.start.": "span_rep_layer.span_rep_layer.project_start.",
    "spans.end.": "span_rep_layer.span_rep_layer.project_end.",
}
_JOINT_TENSORS: dict[SpanHeadKind, dict[str, str]] = {
    "marker_v0": {
        "spans.joined.": "span_rep_layer.span_rep_layer.out_project.0.",
        "spans.out.": "span_rep_layer.span_rep_layer.out_project.3.",
    },
    "marker": {"spans.out.": "span_rep_layer.span_rep_layer.out_project."},
    "token_level": {
        "spans.word.": "scorer.proj_token.",
        "spans.kind.": "scorer.proj_label.",
        "spans.joined.": "scorer.out_mlp.0.",
        "spans.out.": "scorer.out_mlp.3.",
    },
}

# Tensors that published checkpoints hold but do not use in their own forward pass.
_UNUSED = re.compile(
    r"token_rep_layer\.(bert_layer|labels_encoder)\.model\.(pooler\..*|embeddings\.(position_ids|token_type_ids))"
    r"|cross_fuser\..*"
)
_UNUSED_APART = re.compile(rf"{_UNUSED.pattern}|rnn\..*")  # of bi-encoders


def is_gliner_directory(directory: Path) -> bool:
    return (Path(directory) / CONFIG).is_file()


def read_gliner(directory: Path) -> tuple[SpanModel, Tokenizer]:
    """Returns the model and the tokenizer in `directory`: float32, on the CPU, in evaluation mode.

    Raises `PackageError` for another architecture, for a tensor that is missing, extra or misshapen, and for a
    tokenizer that cannot be found or does not fit the tensors.
    """
    directory = Path(directory)
    settings = _read_settings(directory)
    apart = settings.get("labels_encoder") is not None
    unused = _UNUSED_APART if apart else _UNUSED
    tensors = {key: tensor for key, tensor in read_tensors(directory).items() if not unused.fullmatch(key)}
    for theirs in _ENCODERS.values():
        _name_embeddings_once(tensors, theirs)
    tokenizer = _read_tokenizer(directory, settings["model_name"])
    encoder = _encoder(directory, settings, "encoder_config", settings["model_name"])
    labels_encoder = (
        _encoder(directory, settings, "labels_encoder_config", settings["labels_encoder"]) if apart else None
    )
    entity_token_id = settings["class_token_index"]
    if apart:
        tokenizer = _without_prompt_tokens(tokenizer, encoder["vocab_size"])
    else:
        explicit = settings["class_token_index"] != -1 and settings["vocab_size"] != -1
        if not explicit or tokenizer.token_to_id(settings["ent_token"]) is None:
            _add_prompt_tokens(tokenizer, settings)
        encoder["vocab_size"] = settings["vocab_size"] if explicit else tokenizer.get_vocab_size()
        entity_token_id = entity_token_id if explicit else _number(tokenizer, settings["ent_token"])
    token_level = settings["span_mode"] == "token_level"  # such a checkpoint has no widest span
    config = ModelConfig(
        encoder=encoder,
        hidden_size=settings["hidden_size"],
        span_head=_SPAN_MODES[settings["span_mode"]],
        entity_token=settings["ent_token"],
        separator_token=settings["sep_token"],
        entity_token_id=entity_token_id,
        max_width=max(1, settings["max_len"] // 4) if token_level else settings["max_width"],
        lstm=any(key.startswith("rnn.lstm.") for key in tensors),
        dropout=settings["dropout"],
        max_words=settings["max_len"],
        max_labels=None,  # the published models read every label in one prompt
        type_vector_at_entity_token=settings["embed_ent_token"],
        splitter=_SPLITTERS.get(settings["words_splitter_type"], settings["words_splitter_type"]),
        labels_encoder=labels_encoder,
    )
    model = unfilled_model(config)
    _check_vocabulary(model, tokenizer, tensors, directory)
    load_weights(model, tensors, _gliner_names(model), str(directory))
    return model, tokenizer


def read_labels_tokenizer(directory: Path) -> Tokenizer:
    """Returns the labels tokenizer of a bi-encoder. Raises `PackageError` where it cannot be found."""
    directory = Path(directory)
    return _read_tokenizer(directory / LABELS_TOKENIZER, _read_settings(directory)["labels_encoder"])


def write_gliner(
    directory: Path,
    model: SpanModel,
    tokenizer: Tokenizer,
    *,
    labels_tokenizer: Tokenizer | None = None,
    whitespace_words: bool = False,
) -> None:
    """Writes `model` into `directory` in the gliner library's format, complete, so that it loads without a network.

    That format has no splitter `unicode`. A model with it is written only if `whitespace_words` is true; the gliner
    library then cuts other words than the model was trained on.

    Raises `PackageError` for the splitter `unicode` otherwise, for the `paper` head and for encoders of the type umt5,
    which that format does not have, and for a directory that is not empty or cannot be written.
    """
    directory = Path(directory)
    config = model.config
    span_mode = next((mode for mode, head in _SPAN_MODES.items() if head == config.span_head), None)
    if span_mode is None:
        raise PackageError(
            f"The span head {config.span_head!r} has no published form; only {', '.join(_SPAN_MODES.values())} have "
            "one, so train with one of them or keep the model as a package."
        )
    if config.counting is not None:
        raise PackageError(
            "The model is of GLiNER2, and its counting of entities has no form in the gliner library; keep it as a "
            "package."
        )
    if any(encoder["model_type"] == "umt5" for encoder in config.encoders):
        raise PackageError(
            "The model has an encoder of the type 'umt5', which the gliner library cannot run; keep the model as a "
            "package, or train one with an encoder of the type mt5."
        )
    if config.splitter == "unicode" and not whitespace_words:
        raise PackageError(
            "The model cuts words with the splitter 'unicode', which the gliner library does not have; keep it as a "
            "package, or export it with --whitespace-words: gliner then finds nothing inside a clause of a script "
            "without spaces, and other entities around hyphens, numbers and combining marks."
        )
    family = "uni" if config.labels_encoder is None else "bi"
    if family == "bi" and config.lstm:
        raise PackageError(
            "The model is a bi-encoder with an LSTM, which the gliner library would leave out; train with model.lstm "
            "false, or keep the model as a package."
        )
    settings = {
        "model_type": f"gliner_{family}_encoder_{'token' if config.token_level else 'span'}",
        "model_name": config.encoder["model_type"],  # required, but not used: the directory holds everything
        "encoder_config": config.encoder,
        "span_mode": span_mode,
        "hidden_size": config.hidden_size,
        "num_rnn_layers": int(config.lstm),
        "max_width": config.max_width,
        "max_len": config.max_words,
        "max_types": config.max_labels or 25,
        "dropout": config.dropout,
        "ent_token": config.entity_token,
        "sep_token": config.separator_token,
        "class_token_index": config.entity_token_id,
        "vocab_size": config.encoder["vocab_size"],
        "embed_ent_token": config.type_vector_at_entity_token,
        "subtoken_pooling": "first",
        "words_splitter_type": "whitespace" if config.splitter in ("gliner", "unicode") else config.splitter,
    }
    if config.labels_encoder is not None:
        name = config.labels_encoder["model_type"]
        settings |= {"labels_encoder": name, "labels_encoder_config": config.labels_encoder}
    names = _gliner_names(model)
    tensors = {names[key]: tensor.detach().cpu().float().contiguous() for key, tensor in model.state_dict().items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise PackageError(f"{directory} is not empty; name a new directory for the checkpoint.")
        save_file(tensors, directory / WEIGHTS)
        _write_tokenizer(directory, tokenizer, config.encoder)
        if config.labels_encoder is not None:
            assert labels_tokenizer is not None
            (directory / LABELS_TOKENIZER).mkdir()
            _write_tokenizer(directory / LABELS_TOKENIZER, labels_tokenizer, config.labels_encoder)
        _write_json(directory / CONFIG, settings)
    except (OSError, SafetensorError) as error:
        raise PackageError(
            f"The checkpoint {directory} cannot be written ({one_line(error)}); name another directory."
        ) from error


def _read_settings(directory: Path) -> dict[str, Any]:
    """Returns the settings of a checkpoint with their defaults. Raises `PackageError` for an unsupported setting."""
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{directory / CONFIG} cannot be read as JSON ({error}); fetch the checkpoint again."
        ) from error
    if not isinstance(values, dict):
        raise PackageError(f"{directory / CONFIG} holds no settings; fetch the checkpoint again.")
    given = {key: value for key, value in values.items() if value is not None}
    settings = _DEFAULTS | given
    for key, supported in _SUPPORTED.items():
        if settings.get(key) not in supported:
            allowed = " or ".join(json.dumps(value) for value in supported if value is not None) or "none"
            raise PackageError(
                f"{directory} is a GLiNER checkpoint with {key} {json.dumps(settings[key])}; this version reads "
                f"those with {allowed}."
            )
    if not isinstance(settings.get("labels_encoder", ""), str):
        raise PackageError(
            f"{directory / CONFIG} has labels_encoder {json.dumps(settings['labels_encoder'])}; give the name of an "
            "encoder."
        )
    if "bi_encoder" in settings.get("model_type", "") and settings.get("labels_encoder") is None:
        raise PackageError(
            f"{directory} is a GLiNER checkpoint with model_type {json.dumps(settings['model_type'])} and without "
            "labels_encoder; fetch it again."
        )
    if settings.get("labels_encoder") is not None and settings.get("post_fusion_schema"):
        raise PackageError(
            f"{directory} is a GLiNER bi-encoder with post_fusion_schema {json.dumps(settings['post_fusion_schema'])}, "
            'so its types depend on each text; this version reads those with "".'
        )
    for key, default in _DEFAULTS.items():
        if not isinstance(settings[key], (int, float) if isinstance(default, float) else type(default)):
            raise PackageError(
                f"{directory / CONFIG} has {key} {json.dumps(settings[key])}; "
                f"give a value such as {json.dumps(default)}."
            )
    return settings


def _encoder(directory: Path, settings: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """Returns the whole configuration of an encoder; values that are left out get the defaults of its model type."""
    values = settings.get(key)
    if isinstance(values, dict):
        return encoder_values(encoder_config({"model_type": "deberta-v2", **values}))
    from transformers import AutoConfig

    try:
        return encoder_values(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{directory} has no {key}, and the configuration of its encoder {name!r} is not in the local cache and "
            f"cannot be fetched; run `hf download {name} config.json` where there is a network."
        ) from error


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors. Raises `PackageError` where they are missing or cannot be read without running code."""
    path = directory / WEIGHTS
    try:
        if path.is_file():
            tensors = load_file(path)
        else:
            path = directory / OLD_WEIGHTS
            if not path.is_file():
                raise PackageError(f"{directory} has no {WEIGHTS} and no {OLD_WEIGHTS}; fetch the checkpoint again.")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
        raise PackageError(
            f"{path} cannot be read as tensors ({one_line(error)}); fetch the checkpoint again."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise PackageError(f"{path} holds something other than named tensors; fetch the checkpoint again.")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def _name_embeddings_once(tensors: dict[str, torch.Tensor], encoder: str) -> None:
    """Leaves the embeddings of a part of T5 under one name. Files hold them under one of two names, or under both.

    `encoder` is the prefix of the encoder's tensors.
    """
    part, shared = (f"{encoder}{name}.weight" for name in ("encoder.embed_tokens", "shared"))
    if part in tensors and (shared not in tensors or torch.equal(tensors[part], tensors[shared])):
        tensors[shared] = tensors.pop(part)


def _read_tokenizer(directory: Path, model_name: str) -> Tokenizer:
    if (directory / TOKENIZER).is_file() or (directory / TOKENIZER_CONFIG).is_file():
        return pretrained_tokenizer(str(directory))
    try:
        return pretrained_tokenizer(model_name)
    except PackageError as error:
        raise PackageError(
            f"{directory} holds no tokenizer, and the tokenizer of its encoder {model_name!r} cannot be read: "
            f"{str(error.__cause__).splitlines()[0]}; run `hf download {model_name}` where there is a network, or copy "
            "that model's tokenizer files into the directory."
        ) from error


def _add_prompt_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Adds the prompt's tokens in the order in which training added them. Tokens that are present stay the same."""
    tokens = ("[FLERT]", settings["ent_token"], settings["sep_token"])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])


def _without_prompt_tokens(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Returns the tokenizer of a bi-encoder without the added tokens that its encoder has no embeddings for.

    The gliner library adds the prompt's tokens to it and fails where a text holds one of them.
    """
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < rows]
    return Tokenizer.from_str(json.dumps(values))


def _number(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, f"{token!r} has just been added"
    return number


def _check_vocabulary(
    model: SpanModel, tokenizer: Tokenizer, tensors: Mapping[str, torch.Tensor], directory: Path
) -> None:
    """Raises `PackageError` where the tokenizer's numbers are not those that the embeddings were trained with.

    Where the settings give the entity token's number, they also fix the number of embeddings, and the tokens must not
    exceed it. Otherwise there must be exactly one embedding for each token.
    """
    encoder: Any = model.encoder
    embeddings = encoder.get_input_embeddings().weight
    key = next(name for name, parameter in model.named_parameters() if parameter is embeddings)
    name = _gliner_names(model)[key]
    tokens, expected = tokenizer.get_vocab_size(), model.config.encoder["vocab_size"]
    rows = len(tensors[name]) if name in tensors else expected
    if rows != expected or tokens > rows:
        raise PackageError(
            f"The tokenizer of {directory} does not belong to its weights: it has {tokens} tokens and the settings "
            f"count {expected}, but {name} has {rows} rows; fetch the tokenizer that the checkpoint was trained with."
        )


def _gliner_names(model: SpanModel) -> dict[str, str]:
    """Returns the gliner library's name of each tensor of `model`, by our name."""
    config = model.config
    table: dict[str, str] = {}
    for (ours, theirs), encoder in zip(_ENCODERS.items(), config.encoders, strict=False):
        part = {f"{ours}embed_tokens.": f"{theirs}shared.", ours: f"{theirs}encoder."}  # of a model with a decoder
        table |= part if encoder["model_type"] in WITH_DECODER else {ours: theirs}
    table |= _TENSORS | _JOINT_TENSORS[config.span_head]
    names = {}
    for key in model.state_dict():
        ours = next(prefix for prefix in table if key.startswith(prefix))
        names[key] = table[ours] + key.removeprefix(ours)
    return names


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, encoder: dict[str, Any]) -> None:
    (directory / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    _write_json(directory / TOKENIZER_CONFIG, _tokenizer_settings(tokenizer, encoder))


def _tokenizer_settings(tokenizer: Tokenizer, encoder: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that tokenizer.json does not hold.

    They name no beginning and end token: a reader that knows these would replace the special tokens that tokenizer.json
    sets around a text.
    """
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    padding = tokenizer.id_to_token(encoder.get("pad_token_id") or 0)
    unknown = unknown_token(tokenizer)
    settings |= {"pad_token": padding} if padding is not None else {}
    settings |= {"unk_token": unknown} if unknown is not None else {}
    if window_of(encoder) < RELATIVE_POSITION_WINDOW:
        settings["model_max_length"] = window_of(encoder)
    return settings


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
