"""The shapes of the encoders that the recipes name, from their publishers' config.json.

They allow a plan without a network: parameters are counted from them. A run reads the encoder's own files."""

from __future__ import annotations

from typing import Any

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
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
_ROBERTA = _BASE | {
    "model_type": "roberta",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_XLM_ROBERTA = _ROBERTA | {"model_type": "xlm-roberta", "vocab_size": 250002}
_MODERNBERT = {"model_type": "modernbert", "max_position_embeddings": 8192} | {
    "num_hidden_layers": 22,
    "intermediate_size": 1152,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
}
_MMBERT = _MODERNBERT | {"vocab_size": 256000, "pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 1}
_MMBERT |= {"eos_token_id": 1, "sep_token_id": 1, "global_rope_theta": 160000, "local_rope_theta": 160000}
_MT5 = {"model_type": "mt5", "vocab_size": 250112, "d_kv": 64, "feed_forward_proj": "gated-gelu"} | {
    "pad_token_id": 0,
    "eos_token_id": 1,
}

KNOWN_ENCODERS: dict[str, dict[str, Any]] = {
    "microsoft/deberta-v3-xsmall": _DEBERTA_V3
    | {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "microsoft/deberta-v3-small": _DEBERTA_V3 | {"num_hidden_layers": 6},
    "microsoft/deberta-v3-base": _DEBERTA_V3,
    "microsoft/deberta-v3-large": _DEBERTA_V3 | _LARGE,
    "microsoft/mdeberta-v3-base": _DEBERTA_V3 | {"vocab_size": 251000},
    "google-bert/bert-base-cased": _BERT | {"vocab_size": 28996},
    "FacebookAI/roberta-base": _ROBERTA | {"vocab_size": 50265},
    "FacebookAI/xlm-roberta-base": _XLM_ROBERTA,
    "FacebookAI/xlm-roberta-large": _XLM_ROBERTA | _LARGE,
    "answerdotai/ModernBERT-base": _MODERNBERT | {"vocab_size": 50368, "hidden_size": 768, "num_attention_heads": 12},
    "answerdotai/ModernBERT-large": _MODERNBERT
    | {"vocab_size": 50368, "hidden_size": 1024, "num_attention_heads": 16}
    | {"num_hidden_layers": 28, "intermediate_size": 2624},
    "jhu-clsp/mmBERT-small": _MMBERT | {"hidden_size": 384, "num_attention_heads": 6},
    "jhu-clsp/mmBERT-base": _MMBERT | {"hidden_size": 768, "num_attention_heads": 12},
    "google/mt5-small": _MT5 | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "google/mt5-base": _MT5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-large": _MT5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
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
