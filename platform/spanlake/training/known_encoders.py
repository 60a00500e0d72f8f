"""The shapes of the encoders that the recipes name, from their publishers' config.json.

They allow a plan without a network: parameters are counted from them. A run reads the encoder's own files."""

from __future__ import annotations

from typing import Any

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BERT = _BASE | {"model_type": "bert", "max_position_embeddings": 512, "type_vocab_size": 2}
_DEBERTA_V3 = _BASE | {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
_MINILM = _BERT | {"vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536}

KNOWN_ENCODERS: dict[str, dict[str, Any]] = {
    "microsoft/deberta-v3-small": _DEBERTA_V3 | {"num_hidden_layers": 6},
    "microsoft/deberta-v3-base": _DEBERTA_V3,
    "microsoft/deberta-v3-large": _DEBERTA_V3
    | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "microsoft/mdeberta-v3-base": _DEBERTA_V3 | {"vocab_size": 251000},
    "google-bert/bert-base-cased": _BERT | {"vocab_size": 28996},
    "FacebookAI/roberta-base": _BASE
    | {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "albert/albert-base-v2": _BASE
    | {"model_type": "albert", "vocab_size": 30000, "embedding_size": 128, "max_position_embeddings": 512},
    "google/electra-base-discriminator": _BASE
    | {"model_type": "electra", "vocab_size": 30522, "embedding_size": 768, "max_position_embeddings": 512},
    "xlnet/xlnet-base-cased": {
        "model_type": "xlnet",
        "vocab_size": 32000,
        "d_model": 768,
        "n_layer": 12,
        "n_head": 12,
        "d_inner": 3072,
        "pad_token_id": 5,
    },
    "sentence-transformers/all-MiniLM-L6-v2": _MINILM | {"num_hidden_layers": 6},
    "thenlper/gte-small": _MINILM,
}
