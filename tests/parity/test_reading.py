"""The forms in which checkpoints come, and what of them is refused."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from spanlake.errors import PackageError
from spanlake.modeling.gliner_format import is_gliner_directory, read_gliner
from spanlake.package import open_package

TEXTS = [
    "Zürich and São Paulo signed an agreement on climate-change policy (see Annex B), Marie Curie said in Montreal.",
    "Alain Farley works at McGill University in Montreal.",
    "On 3 May 1997, FC Barcelona beat Real_Madrid 2-1 (after extra time).",
]
LABELS = ["person", "organization", "date"]

# What stands in old configurations besides the architecture.
LEGACY = {
    "has_rnn": True,
    "size_sup": -1,
    "shuffle_types": True,
    "random_drop": True,
    "lr_encoder": "1e-5",
    "num_steps": 30000,
    "train_data": "data.json",
    "prev_path": None,
    "root_dir": "ablation_backbone",
    "log_dir": "logs",
    "gpu": 0,
}


def same(ours, theirs):
    assert [[entity[:4] for entity in each] for each in ours] == [[entity[:4] for entity in each] for each in theirs]
    assert sum(map(len, ours)) > 5


def test_a_directory_without_a_configuration_is_not_published(deberta, tmp_path):
    assert is_gliner_directory(deberta.directory)
    assert not is_gliner_directory(tmp_path)


def test_an_old_configuration_without_tokenizer_or_numbers(deberta, workshop, changed):
    """As the first checkpoints came: the tokenizer is the encoder's, and the prompt's tokens must be added to it."""
    names = ("tokenizer.json", "tokenizer_config.json")
    old = changed(deberta.directory, without=names, vocab_size=-1, class_token_index=-1, **LEGACY)
    same(workshop.ours(old).entities(TEXTS, LABELS, threshold=0.2), deberta.entities(TEXTS, LABELS, threshold=0.2))
    config = workshop.ours(old).package.config
    assert config.encoder["vocab_size"] == config.entity_token_id + 2


def test_a_tokenizer_without_the_prompts_tokens_beside_explicit_numbers(deberta, workshop, changed):
    explicit = changed(deberta.directory, without=("tokenizer.json", "tokenizer_config.json"))
    same(workshop.ours(explicit).entities(TEXTS, LABELS, threshold=0.2), deberta.entities(TEXTS, LABELS, threshold=0.2))


def test_the_encoders_configuration_where_the_checkpoint_has_none(deberta, workshop, changed, tmp_path):
    settings = json.loads((deberta.directory / "gliner_config.json").read_text())
    encoder = tmp_path / "encoder"
    shutil.copytree(settings["model_name"], encoder)
    (encoder / "config.json").write_text(json.dumps(settings["encoder_config"]))
    bare = changed(deberta.directory, encoder_config=None, model_name=str(encoder))
    same(workshop.ours(bare).entities(TEXTS, LABELS, threshold=0.2), deberta.entities(TEXTS, LABELS, threshold=0.2))


def test_an_encoder_configuration_leaves_defaults_out(bert, workshop, changed):
    settings = json.loads((bert.directory / "gliner_config.json").read_text())
    encoder = settings["encoder_config"]
    assert encoder.pop("max_position_embeddings") == 512
    short = changed(bert.directory, encoder_config=encoder)
    assert workshop.ours(short).package.config == workshop.ours(bert.directory).package.config


def test_an_encoder_without_a_type_is_deberta(bert, deberta, workshop, changed):
    settings = json.loads((deberta.directory / "gliner_config.json").read_text())
    encoder = settings["encoder_config"]
    assert encoder.pop("model_type") == "deberta-v2"
    untyped = changed(deberta.directory, encoder_config=encoder)
    assert workshop.ours(untyped).package.config == workshop.ours(deberta.directory).package.config


def test_an_lstm_is_there_if_its_tensors_are(bert, workshop, changed):
    """Old configurations promise an LSTM that the checkpoint has not; a random one would take its place."""
    promised = changed(bert.directory, num_rnn_layers=1)
    assert not workshop.ours(promised).package.config.lstm
    same(workshop.ours(promised).entities(TEXTS, LABELS, threshold=0.2), bert.entities(TEXTS, LABELS, threshold=0.2))


def test_half_precision_weights_and_both_files(deberta, workshop, changed):
    def halve(tensors):
        tensors |= {key: tensor.half() for key, tensor in tensors.items()}

    half = changed(deberta.directory, tensors=halve)
    torch.save({"nonsense": torch.zeros(1)}, half / "pytorch_model.bin")  # safetensors are preferred
    model, _ = read_gliner(half)
    reference = load_file(half / "model.safetensors")["prompt_rep_layer.3.weight"].float()
    assert model.types[3].weight.dtype == torch.float32
    assert torch.equal(model.types[3].weight, reference)


def test_tensors_that_nobody_reads_are_dropped(bert, workshop, changed):
    def extend(tensors):
        encoder = "token_rep_layer.bert_layer.model"
        assert f"{encoder}.pooler.dense.weight" in tensors
        tensors[f"{encoder}.embeddings.position_ids"] = torch.arange(512).unsqueeze(0)
        tensors["cross_fuser.layers.0.weight"] = torch.zeros(2)

    extended = changed(bert.directory, tensors=extend)
    same(workshop.ours(extended).entities(TEXTS, LABELS, threshold=0.2), bert.entities(TEXTS, LABELS, threshold=0.2))


REFUSED = {
    "span_mode": ["markerV1", "conv_share", "no such mode"],
    "subtoken_pooling": ["mean", "last"],
    "fuse_layers": [True],
    "labels_encoder": ["BAAI/bge-small-en"],
    "labels_decoder": ["gpt2"],
    "relations_layer": ["biaffine"],
    "span_encoder_config": [{"model_type": "rnn"}],
    "precomputed_prompts_mode": [True],
    "words_splitter_type": ["unicode", "no such splitter"],
    "num_rnn_layers": [2],
    "model_type": ["gliner_bi_encoder_span", "gliner_streaming_span"],
    "hidden_size": ["512", 0],
    "max_len": [12],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_other_architectures_are_refused_by_name(deberta, changed, key, value):
    with pytest.raises(PackageError) as refusal:
        read_gliner(changed(deberta.directory, **{key: value}))
    message = str(refusal.value)
    assert key in message or (key == "max_len" and "max_words" in message)
    assert json.dumps(value) in message or f"{value!r}" in message
    assert message.count(". ") == 0 and message.endswith(".")


def test_another_encoder_with_a_decoder_is_refused(deberta, changed):
    with pytest.raises(PackageError, match="'bart' has a decoder too"):
        read_gliner(changed(deberta.directory, encoder_config={"model_type": "bart"}))


def test_an_unknown_encoder_is_refused(deberta, changed):
    with pytest.raises(PackageError, match="'no-such-encoder'"):
        read_gliner(changed(deberta.directory, encoder_config={"model_type": "no-such-encoder"}))


def remove(name):
    return lambda tensors: tensors.pop(name)


def add(name):
    return lambda tensors: tensors.update({name: torch.zeros(3)})


def reshape(name):
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


OUT = "span_rep_layer.span_rep_layer.out_project.3.weight"
EMBEDDINGS = "token_rep_layer.bert_layer.model.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(OUT), f"1 are missing, such as {OUT}"),
        (remove("token_rep_layer.projection.bias"), "1 are missing, such as token_rep_layer.projection.bias"),
        (remove("rnn.lstm.weight_hh_l0_reverse"), "1 are missing, such as rnn.lstm.weight_hh_l0_reverse"),
        (remove(EMBEDDINGS), f"1 are missing, such as {EMBEDDINGS}"),
        (add("rnn.lstm.weight_ih_l1"), "1 do not belong, such as rnn.lstm.weight_ih_l1"),
        (add("token_rep_layer.bert_layer.layers_fuser.W1.weight"), "such as token_rep_layer.bert_layer.layers_fuser"),
        (add("precomputed_prompts"), "1 do not belong, such as precomputed_prompts"),
        (reshape(OUT), f"{OUT} has the shape \\[23, 96\\], not \\[24, 96\\]"),
        (
            reshape(EMBEDDINGS),
            "does not belong to its weights: it has .* tokens and the settings count .*, but .* rows",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(deberta, changed, change, message):
    with pytest.raises(PackageError, match=message):
        read_gliner(changed(deberta.directory, tensors=change))


def test_a_tokenizer_of_another_size_is_refused(deberta, bert, changed):
    """With one token fewer, the entity token would get the number of another, and nothing would seem wrong."""
    other = changed(deberta.directory, vocab_size=-1, class_token_index=-1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert.directory / name, other / name)
    with pytest.raises(PackageError, match="fetch the tokenizer that the checkpoint was trained with"):
        read_gliner(other)


def test_an_entity_token_of_another_number_is_refused(deberta, changed):
    settings = json.loads((deberta.directory / "gliner_config.json").read_text())
    shifted = changed(deberta.directory, class_token_index=settings["class_token_index"] - 1)
    with pytest.raises(PackageError, match="'<<ENT>>' the number"):
        open_package(str(shifted))


def test_a_missing_tokenizer_is_explained(deberta, changed):
    files = ("tokenizer.json", "tokenizer_config.json")
    lonely = changed(deberta.directory, without=files, model_name="somebody/some-encoder")
    with pytest.raises(PackageError, match="holds no tokenizer.*`hf download somebody/some-encoder` where"):
        read_gliner(lonely)


def test_a_missing_encoder_configuration_is_explained(deberta, changed):
    lonely = changed(deberta.directory, encoder_config=None, model_name="somebody/some-encoder")
    with pytest.raises(PackageError, match="no encoder_config.*`hf download somebody/some-encoder config.json`"):
        read_gliner(lonely)


def test_damaged_files_are_named(deberta, changed, tmp_path):
    damaged = changed(deberta.directory)
    for name, content, message in (
        ("model.safetensors", b"not tensors at all", "model.safetensors cannot be read as tensors"),
        ("tokenizer.json", b"{}", "The tokenizer of .* cannot be read"),
        ("gliner_config.json", b"{", "gliner_config.json cannot be read as JSON"),
        ("gliner_config.json", b"[1]", "gliner_config.json holds no settings"),
    ):
        before = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content)
        with pytest.raises(PackageError, match=message):
            read_gliner(damaged)
        (damaged / name).write_bytes(before)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(PackageError, match=r"has no model.safetensors and no pytorch_model.bin"):
        read_gliner(damaged)


class Trap:
    def __reduce__(self):
        return (open, ("sprung", "w"))


def test_no_code_of_a_pickled_checkpoint_runs(deberta, changed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trapped = changed(deberta.directory, without=("model.safetensors",))
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"weight": Trap()}, trapped / "pytorch_model.bin")
        with pytest.raises(PackageError, match="pytorch_model.bin cannot be read as tensors"):
            read_gliner(trapped)
    assert not (tmp_path / "sprung").exists()


def test_the_old_weights_file_is_read(deberta, workshop, changed):
    old = changed(deberta.directory)
    tensors = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    torch.save(tensors, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    same(workshop.ours(old).entities(TEXTS, LABELS, threshold=0.2), deberta.entities(TEXTS, LABELS, threshold=0.2))
