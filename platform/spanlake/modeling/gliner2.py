"""The model of GLiNER2's architecture `span`, as far as it finds entities.

Shapes: B texts, W words, C types, D width of word and type vectors.
"""

from __future__ import annotations

import torch
from torch import nn

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.counting import Counting
from spanlake.modeling.model import SpanModel, rows
from spanlake.modeling.tokens import Batch


class Gliner2Model(SpanModel):
    """A span model whose type vectors depend on each other, and which finds nothing where it counts no entities."""

    def __init__(self, config: ModelConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config, encoder)
        assert config.counting is not None and config.counter_token_id is not None
        self.types = nn.Identity()  # in place of the layer of a span model
        self.counting = Counting(config.counting, config.hidden_size)
        self._counter_token_id = config.counter_token_id

    def forward(self, batch: Batch) -> torch.Tensor:
        hidden = self.hidden(batch)
        logits: torch.Tensor = self.spans(*self._vectors(hidden, batch))
        at_counter = batch.input_ids.eq(self._counter_token_id).int().argmax(1, keepdim=True)
        return self.counting.gated(logits, rows(hidden, at_counter).squeeze(1))

    def vectors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._vectors(self.hidden(batch), batch)

    def _vectors(self, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        types = self.counting.types(rows(hidden, batch.type_positions), batch.type_counts)
        return self.words(hidden, batch), types
