"""Every family of encoders that is named as supported: built from a configuration alone, run, saved and read again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from spanlake.errors import PackageError
from spanlake.modeling.config import RELATIVE_POSITION_WINDOW, ModelConfig
from spanlake.modeling.model import SpanModel, build_encoder, encoder_config, encoder_values
from spanlake.modeling.span_head import span_mask
from spanlake.package import load_package, prompt_tokenizer, save_package

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DEBERTA_V3 = SMALL | {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "BERT": SMALL | {"model_type": "bert", "max_position_embeddings": 64},
    "DeBERTa-v2": DEBERTA_V3 | {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"},
    "DeBERTa-v3": DEBERTA_V3,
    "mDeBERTa": DEBERTA_V3 | {"vocab_size": 300, "position_buckets": 4, "hidden_size": 48},
    "RoBERTa": SMALL | {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1},
    "XLM-RoBERTa": SMALL | {"model_type": "xlm-roberta", "max_position_embeddings": 66, "pad_token_id": 1},
    "ALBERT": SMALL | {"model_type": "albert", "embedding_size": 16, "max_position_embeddings": 64},
    "ELECTRA": SMALL | {"model_type": "electra", "embedding_size": 16, "max_position_embeddings": 64},
    "XLNet": {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "pad_token_id": 0},
    "MPNet": SMALL | {"model_type": "mpnet", "max_position_embeddings": 66, "pad_token_id": 1},
    "DistilBERT": {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    | {"max_position_embeddings": 64},
    "ModernBERT": SMALL
    | {"model_type": "modernbert", "local_attention": 8, "num_hidden_layers": 4, "pad_token_id": 0}
    | {"max_position_embeddings": 64, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
}
MAX_TOKENS = {
    "DeBERTa-v2": RELATIVE_POSITION_WINDOW,
    "DeBERTa-v3": RELATIVE_POSITION_WINDOW,
    "mDeBERTa": RELATIVE_POSITION_WINDOW,
    "XLNet": RELATIVE_POSITION_WINDOW,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
FAMILIES |= {name: {**_T5, "model_type": name.lower()} for name in ("T5", "mT5", "umT5")}
MAX_TOKENS |= dict.fromkeys(("T5", "mT5", "umT5"), RELATIVE_POSITION_WINDOW)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "off", "with", "it"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<E>", "<S>")])
    return tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tokenizer: Tokenizer) -> SpanModel:
    vocabulary = {"vocab_size": tokenizer.get_vocab_size()}
    encoder = encoder_values(encoder_config(vocabulary | FAMILIES[family]))
    number = tokenizer.token_to_id("<E>")
    assert number is not None
    config = ModelConfig(encoder, 24, "marker_v0", "<E>", "<S>", number, max_width=3, lstm=True, max_words=40)
    torch.manual_seed(2)
    model = SpanModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # wide enough that positions and context count
            torch.nn.init.normal_(parameter, std=0.3 if "embeddings" not in name else 1.0)
    return model


def logits(
    model: SpanModel, tokenizer: Tokenizer, texts: list[list[str]], types: list[list[str]]
) -> list[torch.Tensor]:
    """[spans, C] of each text, all in one batch."""
    prompts = prompt_tokenizer(tokenizer, model.config)
    rows = [
        (prompts.prompt([prompts.label(label) for label in labels]), prompts.words(words))
        for words, labels in zip(texts, types, strict=True)
    ]
    batch = prompts.collate(rows, model.config.pad_token_id)
    with torch.inference_mode():
        scores = model(batch)
    real = span_mask(batch.word_counts, scores.shape[1], model.config.max_width, scores.device)
    return [scores[i][real[i]][:, : len(labels)] for i, labels in enumerate(types)]


TEXTS = [WORDS, ["fox"], WORDS[::-1][:6]]
TYPES = [["dog", "lazy fox"], ["it"], ["fox", "a", "the dog"]]


@pytest.mark.slow
def test_a_text_scores_the_same_alone_and_padded_beside_others(model: SpanModel, tokenizer: Tokenizer):
    model = model.double()  # such weights amplify rounding; whatever else differs, float64 shows
    together = logits(model, tokenizer, TEXTS, TYPES)
    for text, types, batched in zip(TEXTS, TYPES, together, strict=True):
        (alone,) = logits(model, tokenizer, [text], [types])
        torch.testing.assert_close(alone, batched, rtol=1e-5, atol=1e-5)
    assert all(each.std() > 0.01 for each in together if each.numel() > 1)


def test_words_are_read_in_their_context(model: SpanModel, tokenizer: Tokenizer):
    here, there = logits(model, tokenizer, [["the", "fox"], ["lazy", "fox"]], [["dog"], ["dog"]])
    assert (here[-1] - there[-1]).abs() > 1e-4  # the span "fox" alone


def test_saved_and_read_again(model: SpanModel, tokenizer: Tokenizer, tmp_path: Path):
    save_package(tmp_path / "package", model, tokenizer, name="small", metadata={}, card="")
    package = load_package(tmp_path / "package")
    assert package.config.max_tokens == model.config.max_tokens
    read = package.model.state_dict()
    assert model.state_dict().keys() == read.keys()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())
    before = logits(model, tokenizer, TEXTS, TYPES)
    after = logits(package.model, package.tokenizer.backend, TEXTS, TYPES)
    # Products of equal weights may differ in the last bits, because a file's tensors lie at other addresses.
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_window_of_as_many_sub_words_as_are_promised(family: str, model: SpanModel, tokenizer: Tokenizer):
    promised = MAX_TOKENS.get(family, 64)
    assert model.config.max_tokens == promised
    if promised == RELATIVE_POSITION_WINDOW:
        return  # no table to run out of
    words = (WORDS * 10)[: promised - 5]  # beside [CLS] <E> it <S> [SEP]
    (full,) = logits(model, tokenizer, [words], [["it"]])
    assert torch.isfinite(full).all()


def test_nothing_of_the_pooling_layer_is_kept(model: SpanModel):
    assert not [name for name in model.state_dict() if "pooler" in name]


@pytest.mark.parametrize("family", ["T5", "mT5", "umT5"])
def test_of_a_family_with_a_decoder_the_encoder_alone_is_kept(model: SpanModel):
    names = [name for name in model.state_dict() if name.startswith("encoder.")]
    assert not [name for name in names if "decoder" in name.lower()]
    assert [name for name in names if "embed" in name] == ["encoder.embed_tokens.weight"]


def test_another_encoder_decoder_is_refused():
    with pytest.raises(PackageError, match="'bart' has a decoder too; of such types, this version reads mt5, t5, umt5"):
        build_encoder({"model_type": "bart"})


def test_where_an_encoder_comes_from_does_not_enter_its_configuration():
    plain = encoder_values(encoder_config({"model_type": "bert"}))
    described = {"_name_or_path": "x/y", "architectures": ["BertModel"], "torch_dtype": "float16", "auto_map": {}}
    assert encoder_values(encoder_config({"model_type": "bert", **described})) == plain
    assert plain["max_position_embeddings"] == 512
