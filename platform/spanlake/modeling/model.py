"""The model of Zaratiana et al. 2023, section 2: an encoder over prompt and words, and a span head over its output.

Shapes: B texts, T sub-words, W words, K span width, C types, H encoder width, D width of word and type vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spanlake.errors import PackageError, one_line
from spanlake.modeling.bert import Bert, BertConfig, is_bert
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.span_head import SpanHead, feed_forward
from spanlake.modeling.token_head import TokenHead
from spanlake.modeling.tokens import Batch
from spanlake.modeling.transfer import moved

# The transformers library takes seconds to import, and models of type `bert` do without it.
if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Values of an encoder's configuration that do not determine what the encoder computes.
_ORIGIN = ("name_or_path", "architectures", "auto_map", "transformers_version")
_STORAGE = ("dtype", "torch_dtype")
# How to run the encoder. This library decides, because a value here can name code that would be fetched and run.
_RUNNING = (
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
)
_OTHER_USES = ("id2label", "label2id")
# Families with a decoder, of which the encoder can be built by itself.
WITH_DECODER = ("mt5", "t5", "umt5")


class SpanModel(nn.Module):
    def __init__(self, config: ModelConfig, encoder: nn.Module | None = None) -> None:
        """Builds the model with `encoder`, or with a randomly initialised encoder that `config` describes.

        Training passes a pretrained encoder.
        """
        super().__init__()
        self.config = config
        self.encoder = encoder or build_encoder(config.encoder)
        width, dropout = config.hidden_size, config.dropout
        encoder_width = encoder_output_width(self.encoder)
        self.projection = nn.Linear(encoder_width, width) if encoder_width != width else None
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True) if config.lstm else None
        self.types: nn.Module
        self.spans: SpanHead | TokenHead
        if config.token_level:
            self.types, self.spans = nn.Identity(), TokenHead(width, dropout)
        else:
            self.types = feed_forward(width, 4 * width, width, dropout)
            self.spans = SpanHead(config.span_head, width, config.max_width, dropout)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns float32 logits [B, W, K, C]. Ignore those of spans past a text's last word, and of padding types.

        A token-level model returns [B, W, 3, C]: the logits of start, end and inside.
        """
        logits: torch.Tensor = self.spans(*self.vectors(batch))
        return logits

    def vectors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of the words and of the types, [B, W, D] and [B, C, D]."""
        hidden = self.hidden(batch)
        types = rows(hidden, batch.type_positions)
        if self.projection is not None:
            types = self.projection(types)
        return self.words(hidden, batch), self.types(types)

    def encoders(self) -> list[nn.Module]:
        """Returns the pretrained parts."""
        return [self.encoder]

    def move(self, device: torch.device, precision: torch.dtype) -> None:
        """Moves the model to a device and a precision, without a copy."""
        self.to(device, precision)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Returns the encoder's output, [B, T, H]."""
        hidden: torch.Tensor = self.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        return hidden

    def words(self, hidden_BTH: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the vectors of the words, [B, W, D]."""
        words = rows(hidden_BTH, batch.word_positions)
        if self.projection is not None:
            words = self.projection(words)
        if self.lstm is not None:
            words = self._over_words(words, batch.word_counts)
        return words

    def _over_words(self, words_BWD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        assert self.lstm is not None
        # The rows are sorted here, because pack_padded_sequence would make the host wait for an accelerator.
        lengths, order = torch.sort(torch.tensor(counts), descending=True)
        longest_first = words_BWD.index_select(0, moved(order, words_BWD.device))
        packed = nn.utils.rnn.pack_padded_sequence(longest_first, lengths, batch_first=True)
        output, _ = self.lstm(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=words_BWD.shape[1])
        return padded.index_select(0, moved(order.argsort(), words_BWD.device))


def rows(hidden_BTH: torch.Tensor, positions_BN: torch.Tensor) -> torch.Tensor:
    """Returns the vectors at the positions, [B, N, H]."""
    return hidden_BTH.gather(1, positions_BN.unsqueeze(-1).expand(-1, -1, hidden_BTH.shape[-1]))


def encoder_output_width(encoder: nn.Module) -> int:
    """Returns H, which some encoder families call by another name.

    Raises `PackageError` where the configuration does not have it.
    """
    width = getattr(encoder.config, "hidden_size", None)
    if not isinstance(width, int):
        raise PackageError("The model's encoder configuration has no hidden_size; choose another encoder or package.")
    return width


def encoder_config(values: dict[str, Any]) -> PretrainedConfig:
    """Returns the encoder's configuration. Raises `PackageError` where the transformers library does not know it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise PackageError(
            f"The encoder type {kind!r} is unknown to the installed transformers library; upgrade transformers."
        )
    dropped = {"model_type", *_ORIGIN, *_STORAGE, *_RUNNING}
    try:
        kept = {key: value for key, value in values.items() if key not in dropped and not key.startswith("_")}
        config = AutoConfig.for_model(kind, **kept)
    except Exception as error:  # each model type checks its own values and raises its own kind
        raise PackageError(f"The encoder's configuration does not fit type {kind!r} ({one_line(error)}).") from error
    if kind in WITH_DECODER:
        config.is_encoder_decoder = config.use_cache = False
    if config.is_encoder_decoder:
        raise PackageError(
            f"The encoder type {kind!r} has a decoder too; of such types, this version reads {', '.join(WITH_DECODER)}."
        )
    return config


def encoder_values(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the values that determine what the encoder computes, defaults included."""
    dropped = {*_ORIGIN, *_STORAGE, *_OTHER_USES}
    return {key: value for key, value in config.to_dict().items() if key not in dropped and key[0] != "_"}


def build_encoder(values: dict[str, Any]) -> nn.Module:
    """Returns the encoder in float32 with random weights, as `encoder_alone` does.

    Raises `PackageError` where no encoder can be built from the configuration.
    """
    try:
        return Bert(BertConfig.of(values)) if is_bert(values) else new_encoder(encoder_config(values))
    except PackageError:
        raise
    except Exception as error:  # each model type fails in its own way
        raise PackageError(f"No encoder can be built from the model's configuration ({one_line(error)}).") from error


def new_encoder(config: PretrainedConfig) -> nn.Module:
    """Returns the encoder in float32 with random weights, as `encoder_alone` does."""
    return encoder_alone(encoder_class(config).from_config(config, dtype=torch.float32))


def encoder_class(config: PretrainedConfig) -> Any:  # transformers' type hints are incomplete
    """Returns the class of transformers that builds a model which `encoder_alone` takes."""
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if config.model_type in WITH_DECODER else AutoModel


def encoder_alone(model: Any) -> nn.Module:
    """Returns the encoder of a model that `encoder_class` has built: without a pooling layer or a second table of
    embeddings, which the span model never reads.
    """
    if model.config.model_type in WITH_DECODER:
        model = model.encoder
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    encoder: nn.Module = model
    return encoder
