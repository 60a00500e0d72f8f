"""What we write, the published library reads, and finds the same entities."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken

from spanlake.errors import PackageError
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.gliner_format import read_gliner, write_gliner
from spanlake.modeling.model import SpanModel, encoder_config, encoder_values
from spanlake.package import load_package, save_package

TEXTS = [
    "Zürich and São Paulo signed an agreement on climate-change policy (see Annex B), Marie Curie said in Montreal.",
    "Alain Farley works at McGill University in Montreal.",
    "On 3 May 1997, FC Barcelona beat Real_Madrid 2-1 (after extra time).",
    "日本語のテキスト と English, mixed: Köln–Zürich, naïve façade ✓",
]
LABELS = ["person", "organization", "date", "Sports Team"]


def test_there_and_back_again(oracle, ours, workshop, tmp_path):
    package = ours.package
    write_gliner(tmp_path / "written", package.model, package.tokenizer.backend)
    theirs = type(oracle)(tmp_path / "written")
    for threshold in (0.2, 0.4):
        again = theirs.entities(TEXTS, LABELS, threshold=threshold)
        assert again == oracle.entities(TEXTS, LABELS, threshold=threshold)
        assert sum(map(len, again)) > 3
    model, tokenizer = read_gliner(tmp_path / "written")
    assert model.config == package.config
    for (name, tensor), (_, other) in zip(model.state_dict().items(), package.model.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name
    assert tokenizer.to_str() == package.tokenizer.backend.to_str()


@pytest.mark.parametrize("head", ["marker_v0", "marker"])
@pytest.mark.parametrize("lstm", [True, False])
def test_a_model_of_ours(deberta, tmp_path, workshop, head, lstm):
    """With tokens of another name, written from a package whose matrices were stored in int8."""
    tokenizer = workshop.ours(deberta.directory).package.tokenizer.backend
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("[ENT]", "[END]")])
    encoder = encoder_values(
        encoder_config(
            {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"intermediate_size": 48, "max_position_embeddings": 128, "vocab_size": tokenizer.get_vocab_size()}
        )
    )
    entity = tokenizer.token_to_id("[ENT]")
    config = ModelConfig(
        encoder, 24, head, "[ENT]", "[END]", entity, max_width=5, lstm=lstm, max_words=30, max_labels=10
    )
    torch.manual_seed(5)
    model = SpanModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_package(tmp_path / "package", model, tokenizer, name="x", metadata={}, card="", int8=True)
    package = load_package(tmp_path / "package")
    write_gliner(tmp_path / "published", package.model, package.tokenizer.backend)
    theirs = type(deberta)(tmp_path / "published").entities(TEXTS, LABELS, threshold=0.1)
    ours = type(workshop.ours(deberta.directory))(tmp_path / "package").entities(TEXTS, LABELS, threshold=0.1)
    assert [[each[:4] for each in found] for found in ours] == [[each[:4] for each in found] for found in theirs]
    assert sum(map(len, ours)) > 5


def test_every_tensor_has_its_place(deberta, workshop, tmp_path):
    package = workshop.ours(deberta.directory).package
    write_gliner(tmp_path / "strict", package.model, package.tokenizer.backend)
    type(deberta)(tmp_path / "strict", strict=True)


def test_a_limit_of_the_encoder_is_written_and_one_of_ours_is_not(deberta, bert, workshop, tmp_path):
    for oracle, limit in ((deberta, None), (bert, 512)):
        package = workshop.ours(oracle.directory).package
        directory = tmp_path / str(limit)
        write_gliner(directory, package.model, package.tokenizer.backend)
        assert json.loads((directory / "tokenizer_config.json").read_text()).get("model_max_length") == limit


def test_the_papers_head_has_no_published_form(deberta, workshop, tmp_path):
    package = workshop.ours(deberta.directory).package
    config = ModelConfig.from_dict({**package.config.to_dict(), "span_head": "paper"})
    with pytest.raises(PackageError, match="'paper' has no published form; only marker_v0, marker, token_level have"):
        write_gliner(tmp_path / "none", SpanModel(config), package.tokenizer.backend)
    assert not (tmp_path / "none").exists()


def test_nothing_is_overwritten(deberta, workshop):
    package = workshop.ours(deberta.directory).package
    with pytest.raises(PackageError, match="is not empty"):
        write_gliner(deberta.directory, package.model, package.tokenizer.backend)


def test_a_place_that_cannot_be_written_is_named(deberta, workshop, tmp_path):
    package = workshop.ours(deberta.directory).package
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="file/checkpoint cannot be written"):
        write_gliner(tmp_path / "file" / "checkpoint", package.model, package.tokenizer.backend)


def test_a_splitter_of_the_library_is_read_and_written(deberta, changed, tmp_path):
    """Any of the library's splitters, whether it is installed or not."""
    model, tokenizer = read_gliner(changed(deberta.directory, words_splitter_type="janome"))
    assert model.config.splitter == "janome"
    write_gliner(tmp_path / "written", model, tokenizer)
    assert json.loads((tmp_path / "written" / "gliner_config.json").read_text())["words_splitter_type"] == "janome"


def test_the_splitter_unicode_is_written_only_on_demand(deberta, workshop, tmp_path):
    package = workshop.ours(deberta.directory).package
    model = SpanModel(replace(package.config, splitter="unicode"))
    with pytest.raises(PackageError, match=r"the splitter 'unicode', which the gliner library does not have; .*\."):
        write_gliner(tmp_path / "none", model, package.tokenizer.backend)
    assert not (tmp_path / "none").exists()
    write_gliner(tmp_path / "written", model, package.tokenizer.backend, whitespace_words=True)
    assert json.loads((tmp_path / "written" / "gliner_config.json").read_text())["words_splitter_type"] == "whitespace"
