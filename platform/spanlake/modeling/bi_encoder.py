"""The bi-encoder: one encoder reads the words, another reads each type apart, so a type's vector fits every text.

Shapes: B texts, W words, K span width, C types, N labels, L sub-words in the longest label, H width of the labels
encoder, D width of word and type vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.label_tokens import LabelledBatch
from spanlake.modeling.model import SpanModel, build_encoder, encoder_output_width
from spanlake.modeling.tokens import Batch


class LabelsEncoder(nn.Module):
    """Computes the mean over all sub-words of a label, special tokens included."""

    def __init__(self, values: dict[str, Any], width: int, encoder: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder or build_encoder(values)
        encoder_width = encoder_output_width(self.encoder)
        self.projection = nn.Linear(encoder_width, width) if encoder_width != width else None

    def forward(self, label_ids_NL: torch.Tensor, label_mask_NL: torch.Tensor) -> torch.Tensor:
        """Returns [N, D]."""
        hidden = self.encoder(input_ids=label_ids_NL, attention_mask=label_mask_NL).last_hidden_state
        mask = label_mask_NL.unsqueeze(-1).to(hidden.dtype)
        mean: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean if self.projection is None else self.projection(mean)


class BiEncoderModel(SpanModel):
    def __init__(
        self, config: ModelConfig, encoder: nn.Module | None = None, labels_encoder: nn.Module | None = None
    ) -> None:
        """Builds the model with these encoders. Without one, it builds the one that `config` describes, with random
        weights.
        """
        super().__init__(config, encoder)
        assert config.labels_encoder is not None
        self.labels = LabelsEncoder(config.labels_encoder, config.hidden_size, labels_encoder)

    def encoders(self) -> list[nn.Module]:
        return [self.encoder, self.labels.encoder]

    def vectors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of the words and of the types as `SpanModel` does, for a `LabelledBatch`."""
        assert isinstance(batch, LabelledBatch)
        types = self.type_vectors(batch.label_ids, batch.label_mask)
        return self.words(self.hidden(batch), batch), types[batch.type_positions]

    def type_vectors(self, label_ids_NL: torch.Tensor, label_mask_NL: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of labels that the span head reads, [N, D]."""
        if not len(label_ids_NL):
            return torch.zeros(0, self.config.hidden_size, device=label_ids_NL.device)
        vectors: torch.Tensor = self.types(self.labels(label_ids_NL, label_mask_NL))
        return vectors

    def move(self, device: torch.device, precision: torch.dtype) -> None:
        """Moves the model. What computes the vectors of types stays in float32, so that they fit every precision."""
        self.to(device)
        for name, part in self.named_children():
            if name not in ("labels", "types"):
                part.to(precision)
