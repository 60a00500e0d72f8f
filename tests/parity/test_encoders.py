"""Each encoder that published checkpoints have: read, trained for a step, exported, and read by the library again.

The configurations are those of `KNOWN_ENCODERS` with fewer and smaller layers.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spanlake.data.batches import tokenize, training_batch
from spanlake.data.examples import Example, Mention
from spanlake.data.sampling import Sampling, SetTypes
from spanlake.errors import PackageError
from spanlake.modeling.gliner_format import read_gliner, write_gliner
from spanlake.modeling.model import SpanModel
from spanlake.package import open_package
from spanlake.training.known_encoders import KNOWN_ENCODERS
from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

from .conftest import Kind, Oracle, Workshop

CLOSE = 1e-4
TEXTS = [
    "Alain Farley works at McGill University in Montreal, Quebec.",
    "Zürich and São Paulo signed an agreement on climate-change policy (see Annex B), it said: naïve façade!",
    "Привет, мир: Анна живёт в Париже.",
]
LABELS = ["person", "organization", "location", "Sports Team"]
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
SMALL_T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3}


def small(encoder: str, **sizes: Any) -> dict[str, Any]:
    """The configuration of a known encoder, without its vocabulary, with these sizes."""
    known = {key: value for key, value in KNOWN_ENCODERS[encoder].items() if key != "vocab_size"}
    return known | (SMALL_T5 if "d_model" in known else SMALL) | sizes


_MODERN = {"local_attention": 16, "num_hidden_layers": 4, "pad_token_id": 0}
ENCODERS = (
    Kind("deberta-v3-xsmall", "unigram", small("microsoft/deberta-v3-xsmall", num_hidden_layers=3)),
    Kind("deberta-v3-small", "unigram", small("microsoft/deberta-v3-small", num_hidden_layers=1)),
    Kind("deberta-v3-base", "unigram", small("microsoft/deberta-v3-base", num_hidden_layers=2)),
    Kind("deberta-v3-large", "unigram", small("microsoft/deberta-v3-large", num_hidden_layers=4, hidden_size=48)),
    Kind("mdeberta-v3-base", "unigram", small("microsoft/mdeberta-v3-base", num_hidden_layers=2)),
    Kind("xlm-roberta-base", "unigram_roberta", small("FacebookAI/xlm-roberta-base", num_hidden_layers=2)),
    Kind("xlm-roberta-large", "unigram_roberta", small("FacebookAI/xlm-roberta-large", num_hidden_layers=3)),
    Kind("ModernBERT-base", "byte_level", small("answerdotai/ModernBERT-base", **_MODERN)),
    Kind("mmBERT-small", "gemma", small("jhu-clsp/mmBERT-small", **_MODERN)),
    Kind("mmBERT-base", "gemma", small("jhu-clsp/mmBERT-base", **_MODERN)),
    Kind("mt5-base", "unigram_t5", small("google/mt5-base")),
    Kind("t5", "unigram_t5", {**small("google/mt5-base"), "model_type": "t5"}),
)


def compare(workshop: Workshop, directory: Path) -> None:
    """Checks that both libraries give each span the same score."""
    ours, theirs = workshop.ours(directory), Oracle(directory)
    compared = 0
    for text in TEXTS:
        (row,) = ours.rows(text, LABELS)
        mine, expected = ours.logits([row])[0], theirs.logits(text, LABELS)
        words, width, _ = expected.shape
        real = torch.arange(words).view(-1, 1) + torch.arange(width) < words
        torch.testing.assert_close(mine[real], expected[real], rtol=0, atol=CLOSE)
        compared += int(real.sum())
    assert compared > 100 and expected[real].std() > 0.1


@pytest.mark.parametrize("kind", ENCODERS, ids=lambda kind: kind.name)
def test_read_trained_for_a_step_exported_and_read_again(workshop, tmp_path, kind):
    directory = workshop.oracle(replace(kind, settings={"hidden_size": 24})).directory
    compare(workshop, directory)
    package = open_package(str(directory))
    model, before = package.model, [parameter.detach().clone() for parameter in package.model.parameters()]
    train_one_step(package)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert all(changed), [name for (name, _), moved in zip(model.named_parameters(), changed, strict=True) if not moved]
    write_gliner(tmp_path / "trained", model.eval(), package.tokenizer.backend)
    compare(workshop, tmp_path / "trained")
    again, _ = read_gliner(tmp_path / "trained")
    assert again.config == model.config


def train_one_step(package):
    """Text, types and mentions of one batch; dropout is off, so that every weight has a gradient."""
    tokenizer, labels = package.tokenizer, LABELS
    example = Example(TEXTS[0], (Mention(0, 12, "person"), Mention(22, 39, "organization")))
    [tokenized] = tokenize([example], tokenizer, package.config)
    types = SetTypes(Sampling(drop_types=False, negatives="own"), dict.fromkeys(labels, 1))
    batch, true = training_batch([tokenized], [0], tokenizer, [types], package.config, seed=1, step=1)
    optimiser = torch.optim.Adam(package.model.parameters(), lr=1e-3)
    span_loss(package.model(batch), true, batch.word_counts, batch.type_counts, OptimSection()).backward()
    optimiser.step()


SHARED = "token_rep_layer.bert_layer.model.shared.weight"
OF_PART = "token_rep_layer.bert_layer.model.encoder.embed_tokens.weight"


def test_the_embeddings_of_mt5_under_either_of_their_names(workshop, changed):
    kind = next(kind for kind in ENCODERS if kind.name == "mt5-base")
    directory = workshop.oracle(replace(kind, settings={"hidden_size": 24})).directory
    expected = read_gliner(directory)[0].state_dict()["encoder.embed_tokens.weight"]

    def other_name(tensors):
        tensors[OF_PART] = tensors.pop(SHARED)

    def both_names(tensors):
        tensors[OF_PART] = tensors[SHARED].clone()

    def two_tables(tensors):
        tensors[OF_PART] = tensors[SHARED] + 1

    for change in (other_name, both_names):
        copy = changed(directory, tensors=change)
        model, _ = read_gliner(copy)
        assert torch.equal(model.state_dict()["encoder.embed_tokens.weight"], expected)
        shutil.rmtree(copy)
    with pytest.raises(PackageError, match=f"1 do not belong, such as {OF_PART}"):
        read_gliner(changed(directory, tensors=two_tables))


def test_an_encoder_that_the_library_cannot_run_is_not_exported(workshop, tmp_path):
    """The library builds umT5 with its decoder, and then asks it for entities without the decoder's input."""
    kind = next(kind for kind in ENCODERS if kind.name == "mt5-base")
    umt5 = Kind("umt5", "unigram_t5", {**kind.encoder, "model_type": "umt5"}, {"hidden_size": 24})
    with pytest.raises(ValueError, match="must specify exactly one of input_ids or inputs_embeds"):
        workshop.oracle(umt5)
    package = open_package(str(workshop.oracle(replace(kind, settings={"hidden_size": 24})).directory))
    config = replace(package.config, encoder={**package.config.encoder, "model_type": "umt5"})
    with pytest.raises(PackageError, match=r"'umt5', which the gliner library cannot run; .*\.$"):
        write_gliner(tmp_path / "written", SpanModel(config), package.tokenizer.backend)
    assert not (tmp_path / "written").exists()
