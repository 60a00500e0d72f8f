"""BERT (Devlin et al. 2019) in plain PyTorch: the encoder of every model of type `bert`.

It computes what `BertModel` of the transformers library computes without its pooling layer, and names the parameters
alike. The import of that library would take longer than most uses of the command line.

Shapes: B texts, T sub-words in the longest, N sub-words of all texts, A heads, d width of a head, H width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from spanlake.errors import PackageError, shown
from spanlake.modeling.attention import attend_with_gradients

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": gelu,
    "gelu_new": partial(gelu, approximate="tanh"),
    "relu": relu,
}


@dataclass(frozen=True)
class BertConfig:
    """The values of an encoder's configuration that determine what BERT computes. The defaults are the published ones.

    Raises `PackageError` for a value that no BERT can have.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind == "int" and (type(value) is not int or value < 1):
                raise _unfit(field.name, value, "a whole number of at least 1")
            if kind == "float" and (type(value) not in (int, float) or not 0 <= value < math.inf):
                raise _unfit(field.name, value, "a number of at least 0")
        pad = self.pad_token_id
        if pad is not None and (type(pad) is not int or pad not in range(self.vocab_size)):
            raise _unfit("pad_token_id", self.pad_token_id, f"a whole number below vocab_size, {self.vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise _unfit("hidden_size", self.hidden_size, f"a multiple of the {self.num_attention_heads} heads")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> BertConfig:
        """Returns the configuration in `values`, which may hold others that change nothing here."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def _unfit(name: str, value: Any, allowed: str) -> PackageError:
    return PackageError(
        f"The encoder's configuration does not fit type 'bert': {name} is {shown(value)}, not {allowed}."
    )


def is_bert(values: Mapping[str, Any]) -> bool:
    """Returns whether this module computes the encoder that a configuration describes."""
    return (
        values["model_type"] == "bert"
        and values.get("hidden_act", "gelu") in [*_ACTIVATIONS]  # the value need not be hashable
        and values.get("position_embedding_type", "absolute") == "absolute"
        and not values.get("is_decoder")
    )


class Output(NamedTuple):
    last_hidden_state: torch.Tensor  # [B, T, H]


class Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        """Builds the encoder with random weights."""
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if config.pad_token_id is not None:
            nn.init.zeros_(self.embeddings.word_embeddings.weight[config.pad_token_id].detach())

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def gradient_checkpointing_enable(self) -> None:
        """Makes backward passes compute each layer again, instead of keeping what is inside it."""
        self.encoder.checkpointing = True

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
        """Returns the vectors of the sub-words. Those of padding have no meaning.

        input_ids: int64 [B, T]; attention_mask: int64 [B, T], 1 for a sub-word and 0 for padding.
        """
        length = input_ids.shape[1]
        if not input_ids.is_cpu or torch.compiler.is_exporting():
            positions = torch.arange(length, device=input_ids.device)
            mask = attention_mask[:, None, None].bool()
            return Output(self.encoder(self.embeddings(input_ids, positions), _Padded(mask)))
        # On a CPU the layers read only real sub-words, one text after the other.
        real = attention_mask.flatten().nonzero().squeeze(1)
        vectors = self.embeddings(input_ids.flatten()[real], real % length)
        vectors = self.encoder(vectors, _Packed(attention_mask.sum(1).tolist()))
        padded = vectors.new_zeros(attention_mask.numel(), vectors.shape[1]).index_copy(0, real, vectors)
        return Output(padded.view(*attention_mask.shape, -1))


@dataclass(frozen=True)
class _Padded:
    """Texts as rows of equal length: vectors are [B, T, H]."""

    mask: torch.Tensor  # bool [B, 1, 1, T], True for a sub-word

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, dropout: float
    ) -> torch.Tensor:
        """Returns [B, T, H]: what each sub-word gathers from those of its text."""
        q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        return scaled_dot_product_attention(q, k, v, self.mask, dropout).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Packed:
    """Texts one after the other, without padding: vectors are [N, H]."""

    lengths: list[int]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, dropout: float
    ) -> torch.Tensor:
        """Returns [N, H]: what each sub-word gathers from those of its text."""
        if torch.is_grad_enabled() and (dropout or query.dtype != torch.float32):
            return attend_with_gradients(query, key, value, self.lengths, heads, dropout)
        runs = [(length, len(list(run))) for length, run in groupby(self.lengths)]  # neighbours of equal length
        sizes = [length * texts for length, texts in runs]
        outputs = []
        for (length, texts), *parts in zip(runs, *(tensor.split(sizes) for tensor in (query, key, value)), strict=True):
            q, k, v = (part.view(texts, length, heads, -1).transpose(1, 2) for part in parts)
            outputs.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(texts * length, -1))
        return torch.cat(outputs)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]  # all sub-words are of type 0
        vectors: torch.Tensor = self.dropout(self.LayerNorm(words + self.position_embeddings(positions)))
        return vectors


class _Layers(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing = False

    def forward(self, vectors: torch.Tensor, texts: _Padded | _Packed) -> torch.Tensor:
        for layer in self.layer:
            if self.checkpointing and self.training:
                vectors = checkpoint(layer, vectors, texts, use_reentrant=False)
            else:
                vectors = layer(vectors, texts)
        return vectors


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Residual(config, config.intermediate_size)

    def forward(self, vectors: torch.Tensor, texts: _Padded | _Packed) -> torch.Tensor:
        vectors = self.attention(vectors, texts)
        output: torch.Tensor = self.output(self.intermediate(vectors), vectors)
        return output


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Residual(config, config.hidden_size)

    def forward(self, vectors: torch.Tensor, texts: _Padded | _Packed) -> torch.Tensor:
        output: torch.Tensor = self.output(self.self(vectors, texts), vectors)
        return output


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, vectors: torch.Tensor, texts: _Padded | _Packed) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        return texts.attend(self.query(vectors), self.key(vectors), self.value(vectors), self.heads, dropout)


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(vectors))


class _Residual(nn.Module):
    """A linear layer whose output is added to the input of the block."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.LayerNorm(self.dropout(self.dense(inner)) + before)
        return output
