"""The model at the beginning of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import nn

from spanlake.errors import PackageError, UserError, one_line
from spanlake.modeling.bert import Bert, BertConfig, is_bert
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.model import (
    SpanModel,
    encoder_alone,
    encoder_class,
    encoder_config,
    encoder_values,
    new_encoder,
)
from spanlake.modeling.pretrained import pretrained_tokenizer
from spanlake.modeling.tokens import ModelTokenizer
from spanlake.modeling.unfilled import Unfilled
from spanlake.package import Package, find_model, fingerprint_model, open_package, prompt_tokenizer
from spanlake.training.known_encoders import KNOWN_ENCODERS
from spanlake.training.lora import add_lora
from spanlake.training.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The tokens of published checkpoints, in their order, so that a trained model can be written in their format.
PROMPT_TOKENS = ("[FLERT]", "<<ENT>>", "<<SEP>>")
_DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout", "dropout", "dropout_rate")


def starting_model(section: ModelSection) -> tuple[ModelTokenizer, SpanModel, str]:
    """Returns the tokenizer, the model and its fingerprint: those of the package `start`, or encoders with a random
    head, whose fingerprint is empty without `lora`. The model has the adapter that `lora` describes.

    Random weights come from torch's global generator. Raises `UserError` for an encoder, a tokenizer or a package that
    cannot be found or read, and for an adapter that does not fit.
    """
    if section.start:
        package = starting_package(section)
        tokenizer, model, fingerprint = package.tokenizer, package.model, package.fingerprint
    else:
        _quieten_transformers()
        tokenizer, model = _new(section) if section.labels is None else _new_bi_encoder(section, section.labels)
        read = tokenizer.backend, tokenizer.labels_backend
        fingerprint = fingerprint_model(model, *read) if section.lora else ""
    if section.lora:
        add_lora(model, section.lora)
    return tokenizer, model, fingerprint


def starting_package(section: ModelSection) -> Package:
    """Returns the package `start`. Raises `UserError` for one that cannot be read, or cannot be trained as asked."""
    package = open_package(section.start)
    if package.config.counting is not None:
        raise UserError(
            f"The model {section.start} is a GLiNER2 model, which finds entities but cannot be trained here; begin "
            "with an encoder or with another model."
        )
    if section.lora and section.lora.publish == "adapter" and "adapter" in package.metadata:
        raise UserError(
            f"The model {section.start} is an adapter, which cannot be the base of another; let model.lora.publish be "
            "merged."
        )
    return package


def _new(section: ModelSection) -> tuple[ModelTokenizer, SpanModel]:
    tokenizer = _tokenizer(section)
    tokenizer.add_special_tokens(list(PROMPT_TOKENS))
    encoder = _encoder(section, tokenizer)
    encoder.resize_token_embeddings(tokenizer.get_vocab_size(), mean_resizing=True)
    config = model_config(section, encoder.config, tokenizer)
    return prompt_tokenizer(tokenizer, config), SpanModel(config, _own(encoder, config.encoder))


def _new_bi_encoder(section: ModelSection, labels: ModelSection) -> tuple[ModelTokenizer, SpanModel]:
    tokenizer, labels_tokenizer = _tokenizer(section), _tokenizer(labels)
    encoder, labels_encoder = _encoder(section, tokenizer), _encoder(labels, labels_tokenizer)
    config = bi_encoder_config(section, encoder.config, labels_encoder.config)
    assert config.labels_encoder is not None
    model = BiEncoderModel(config, _own(encoder, config.encoder), _own(labels_encoder, config.labels_encoder))
    return prompt_tokenizer(tokenizer, config, labels_tokenizer), model


def _encoder(section: ModelSection, tokenizer: Tokenizer) -> Any:
    return _random_encoder(section, tokenizer) if section.encoder_config else _pretrained_encoder(section)


def _quieten_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # it reports new embeddings, and every run begins with some
    logging.disable_progress_bar()


def _own(encoder: nn.Module, values: dict[str, Any]) -> nn.Module:
    """Returns the encoder with the same weights as a module of this package, where it has one."""
    if not is_bert(values):
        return encoder
    with torch.device("meta"), Unfilled():
        bert = Bert(BertConfig.of(values))
    bert.load_state_dict(encoder.state_dict(), assign=True)
    return bert


def words_of(section: ModelSection) -> tuple[str, int]:
    """The splitter of the model and K: the recipe's, or those of the package that the run begins with.

    Raises `UserError` for a package that cannot be had.
    """
    if not section.start:
        widest = section.max_words if section.span_head == "token_level" else section.max_width
        return section.splitter, widest
    config = open_package(section.start).config
    return config.splitter, config.widest


def model_config(section: ModelSection, encoder: PretrainedConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """Returns the architecture that a recipe describes. Without a tokenizer, the entity token's number is a guess."""
    entity_id = tokenizer.token_to_id(PROMPT_TOKENS[1]) if tokenizer else 1
    assert entity_id is not None
    return ModelConfig(
        encoder=encoder_values(encoder),
        hidden_size=section.hidden_size,
        span_head=section.span_head,
        entity_token=PROMPT_TOKENS[1],
        separator_token=PROMPT_TOKENS[2],
        entity_token_id=entity_id,
        max_width=section.max_width,
        max_words=section.max_words,
        lstm=section.lstm,
        dropout=section.dropout,
        splitter=section.splitter,
    )


def bi_encoder_config(section: ModelSection, encoder: PretrainedConfig, labels: PretrainedConfig) -> ModelConfig:
    """Returns the architecture that a recipe with a labels encoder describes. It has no prompt."""
    config = model_config(section, encoder, None)
    return replace(config, entity_token_id=-1, max_labels=None, labels_encoder=encoder_values(labels))


def planned_config(section: ModelSection) -> tuple[PretrainedConfig, str]:
    """Returns the encoder's configuration and its origin: the recipe, the encoder's files or the known encoders.

    Raises `UserError` for an encoder that is neither on this machine nor known.
    """
    if section.encoder_config:
        return _random_config(section, _tokenizer(section)), "the recipe"
    from transformers import AutoConfig

    if section.encoder in KNOWN_ENCODERS and not Path(section.encoder).is_dir():
        return encoder_config(KNOWN_ENCODERS[section.encoder]), "its published configuration"
    try:
        return AutoConfig.from_pretrained(section.encoder), "its files"
    except (OSError, ValueError) as error:
        raise _missing(section.encoder, error) from error


def _pretrained_encoder(section: ModelSection) -> nn.Module:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(section.encoder)
        _set_dropout(config, section.encoder_dropout)
        model = encoder_class(config).from_pretrained(section.encoder, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _missing(section.encoder, error) from error
    return encoder_alone(model)


def _random_encoder(section: ModelSection, tokenizer: Tokenizer) -> nn.Module:
    config = _random_config(section, tokenizer)
    _set_dropout(config, section.encoder_dropout)
    return new_encoder(config)


def _random_config(section: ModelSection, tokenizer: Tokenizer) -> PretrainedConfig:
    pad = next((i for i in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if i is not None), 0)
    return encoder_config({"pad_token_id": pad, **section.encoder_config, "vocab_size": tokenizer.get_vocab_size()})


def _set_dropout(config: PretrainedConfig, rate: float) -> None:
    for key in _DROPOUTS:
        if hasattr(config, key):
            setattr(config, key, rate)


def _tokenizer(section: ModelSection) -> Tokenizer:
    if section.encoder_config:
        return pretrained_tokenizer(str(find_model(section.tokenizer)))
    try:
        return pretrained_tokenizer(section.encoder)
    except PackageError as error:
        if not Path(section.encoder).is_dir():
            raise _missing(section.encoder, error.__cause__ or error) from error
        raise


def _missing(encoder: str, error: BaseException) -> UserError:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", encoder):
        return UserError(f"There is no encoder in {encoder!r}; give its directory or a Hub id, such as owner/name.")
    if Path(encoder).is_dir():
        return UserError(f"The encoder in {encoder} cannot be read ({one_line(error)}); fetch it again.")
    return UserError(
        f"The encoder {encoder!r} is not a directory here, not in the Hugging Face cache, and could not be fetched; "
        f"where there is a network run `hf download {encoder} --local-dir DIR`, bring DIR here, and name "
        f"it in the recipe ({one_line(error)})."
    )
