"""A bi-encoder that loads in a moment: two layers of random weights for texts, and one for labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.conftest import TINY_ENCODER, tiny_tokenizer

from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.config import ModelConfig
from spanlake.package import save_package


def save_bi_encoder(directory: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Writes a package and returns its directory. Its scores are distinct, and lie on both sides of 0.5."""
    tokenizer, labels_tokenizer = tiny_tokenizer(), tiny_tokenizer()
    encoder = TINY_ENCODER | {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.5}
    values: dict[str, Any] = {
        "encoder": encoder,
        "labels_encoder": encoder | {"num_hidden_layers": 1, "hidden_size": 16},
        "hidden_size": 24,
        "span_head": "marker_v0",
        "entity_token": "<<ENT>>",
        "separator_token": "<<SEP>>",
        "entity_token_id": -1,
        "max_width": 4,
        "max_words": 48,
        "max_labels": None,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BiEncoderModel(ModelConfig(**{**values, **settings})).eval()
        for parameter in (*model.spans.parameters(), *model.types.parameters()):
            parameter.mul_(2.0 if parameter.dim() == 2 else 0.0)
    save_package(
        directory, model, tokenizer, name="apart", metadata={}, card="Random.\n", labels_tokenizer=labels_tokenizer
    )
    return directory
