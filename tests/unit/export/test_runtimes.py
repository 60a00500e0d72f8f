"""Exports to other runtimes: each graph scores what the package scores, and a program without torch reads it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT

from spanlake import Extractor, cli
from spanlake.calibration import Calibration
from spanlake.errors import PackageError, UserError
from spanlake.export import runtimes
from spanlake.export.int8 import narrowed
from spanlake.export.runtimes import write_runtime
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.model import SpanModel
from spanlake.modeling.span_head import span_mask
from spanlake.package import Package, load_package, save_package
from tests.conftest import WORDS, tiny_tokenizer

pytest.importorskip("onnxscript", reason="pip install 'spanlake[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'spanlake[export]'")

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
BERT = SMALL | {"model_type": "bert", "max_position_embeddings": 256}
DEBERTA = SMALL | {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 16,
    "max_position_embeddings": 256,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "bert": (BERT, {"span_head": "marker", "lstm": True}, False),
    "deberta int8": (DEBERTA, {"span_head": "marker_v0", "type_vector_at_entity_token": False}, True),
    "token level": (BERT, {"span_head": "token_level"}, False),
}
TEXTS = ["ada", WORDS.replace("\n", " "), " ".join(["marie curie knew pierre in warsaw ."] * 25)]
LABELS = [["person"], [f"kind {number}" for number in range(12)], ["a place", "person"]]


def made(directory: Path, encoder: dict[str, Any], values: dict[str, Any]) -> Package:
    """Returns a package of random weights, whose scores are spread over 0 to 1."""
    tokenizer = tiny_tokenizer()
    number = tokenizer.token_to_id("<<ENT>>")
    assert number is not None
    encoder = encoder | {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.2}
    torch.manual_seed(3)
    settings: dict[str, Any] = {"hidden_size": 24, "max_width": 4, "max_words": 200} | values
    config = ModelConfig(encoder, entity_token="<<ENT>>", separator_token="<<SEP>>", entity_token_id=number, **settings)
    model = SpanModel(config).eval()
    with torch.no_grad():
        for parameter in (*model.spans.parameters(), *model.types.parameters()):
            parameter.mul_(2.0)
    metadata = {"calibration": Calibration(0.5, 0.1, 0.5, {"person": 0.4}).to_dict()}
    save_package(directory, model, tokenizer, name="small", metadata=metadata, card="")
    return load_package(directory)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_graph_scores_short_long_and_many_label_batches_as_the_package_does(case: str, tmp_path: Path):
    encoder, values, int8 = CASES[case]
    package = made(tmp_path / "package", encoder, values)
    write_runtime(package, tmp_path / "out", "onnx", int8=int8)
    if int8:
        assert cli.main(["package", "import", str(tmp_path / "package"), str(tmp_path / "int8"), "--int8"]) == 0
        package = load_package(tmp_path / "int8")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    words = [package.tokenizer.words(text.split()) for text in TEXTS]
    prompts = [package.tokenizer.prompt([package.tokenizer.label(each) for each in labels]) for labels in LABELS]
    for rows in ([0], [1], [2], [0, 1, 2]):
        batch = package.tokenizer.collate([(prompts[row], words[row]) for row in rows], 0)
        with torch.inference_mode():
            ours = torch.sigmoid(package.model(batch) * 0.5 + 0.1).numpy()
        inputs = (batch.input_ids, batch.attention_mask, batch.word_positions, batch.type_positions)
        names = ("input_ids", "attention_mask", "word_positions", "type_positions")
        feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        [theirs] = session.run(["scores"], feed | {"word_counts": np.array(batch.word_counts)})
        width = 1 if package.config.token_level else package.config.max_width
        real = span_mask(batch.word_counts, ours.shape[1], width, torch.device("cpu")).numpy()
        real = np.broadcast_to(real, ours.shape[:3])
        assert theirs.shape == ours.shape and not theirs[~real].any()
        np.testing.assert_allclose(theirs[real], ours[real], rtol=0, atol=1e-3)
    assert ours[real].std() > 0.01  # of the batch with all texts
    about = json.loads((tmp_path / "out" / "runtime.json").read_text())
    assert (about["fingerprint"], about["thresholds"]) == (package.fingerprint, {"person": 0.4})
    assert str(ROOT).encode() not in (tmp_path / "out" / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_example_finds_what_the_package_finds_without_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    text = "Alain Farley works at McGill University in Montreal."
    assert cli.main(["package", "export", "mini", str(tmp_path / "mini"), "--to", "onnx", "--int8"]) == 0
    assert (tmp_path / "mini" / "model.onnx").stat().st_size < 35e6
    program = str(ROOT / "examples" / "find_with_onnx.py")
    without_torch = "import sys, runpy; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0])"
    call = [sys.executable, "-c", without_torch, program, str(tmp_path / "mini"), "person,university"]
    ran = subprocess.run([*call, text], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = {(int(start), int(end), label): float(score) for start, end, label, score, _ in lines(ran.stdout)}
    expected = Extractor.load("mini", device="cpu", precision="float32").extract([text], ["person", "university"])[0]
    assert found.keys() == {(each.start, each.end, each.label) for each in expected} and len(found) > 1
    for each in expected:
        assert abs(found[each.start, each.end, each.label] - each.score) < 1e-3
    refused = subprocess.run([*call, text * 100], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "cut a longer text" in refused.stderr


def lines(printed: str) -> list[list[str]]:
    return [line.split("\t") for line in printed.splitlines()]


@pytest.mark.slow
def test_openvino_scores_as_the_package_does(tmp_path: Path):
    pytest.importorskip("openvino", reason="pip install 'spanlake[openvino]'")
    package = made(tmp_path / "package", BERT, {"span_head": "marker_v0"})
    write_runtime(package, tmp_path / "out", "openvino")  # which compares the scores, as the next test shows
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.xml",
        "model.bin",
        "runtime.json",
        "tokenizer.json",
        "README.md",
    }


def test_a_graph_with_other_scores_is_refused(tmp_path: Path):
    package = made(tmp_path / "package", BERT, {"span_head": "marker_v0"})

    def of_another_model(inputs: dict[str, Any]) -> Any:
        return np.zeros((*inputs["word_positions"].shape, 4, inputs["type_positions"].shape[1]), np.float32)

    with pytest.raises(PackageError, match="differ from those of small by more than 0.001"):
        runtimes._compare(package, of_another_model, "onnx")


def test_wrong_calls_are_refused_in_one_sentence(
    tiny_model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.txt").write_text("precious")
    for options, says in (
        (["out", "--int8"], "--int8 goes with --to onnx"),
        (["out", "--to", "onnx", "--whitespace-words"], "--whitespace-words goes with --to gliner, not"),
        (["out", "--to", "openvino", "--int8"], "--int8 goes with --to onnx, not with --to openvino"),
        (["out", "--to", "tflite"], "tflite"),
        (["", "--to", "onnx"], "is not empty"),
        (["mine.txt", "--to", "onnx"], "is a file"),
    ):
        call = ["package", "export", str(tiny_model_dir), str(tmp_path / options[0]), *options[1:]]
        try:
            code = cli.main(call)
        except SystemExit as end:  # argparse
            code = int(str(end.code))
        said = capfd.readouterr().err
        assert code == 2 and says in said and said.count("\n") == 1, said
    monkeypatch.setitem(runtimes._NEEDS, "onnx", ("onnx", "no_such_library"))
    with pytest.raises(UserError, match=re.escape("needs no_such_library, not installed here; run: pip install")):
        write_runtime(load_package(tiny_model_dir), tmp_path / "out", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_int8_holds_a_matrix_without_loss_or_not_at_all():
    rng = np.random.default_rng(1)
    whole = rng.integers(-127, 128, (6, 9)).astype(np.float32)
    whole[:, 0] = 127
    scaled = whole * rng.uniform(0.1, 2, (6, 1)).astype(np.float32)
    for matrix in (scaled, scaled.T):
        found = narrowed(matrix)
        assert found is not None and found[0].flags.c_contiguous
        np.testing.assert_allclose(found[0] * found[1], matrix, rtol=1e-6)
    assert narrowed(rng.normal(size=(6, 9)).astype(np.float32)) is None
