"""Writes a package in the form of another runtime: ONNX, with float32 or int8 weights, or OpenVINO with float32.

    model.onnx           the graph (ONNX); or model.xml and model.bin (OpenVINO)
    tokenizer.json       the sub-words
    runtime.json         the prompt's tokens, the limits, the thresholds and the fingerprint of the package
    README.md            the model card

The written graph is run before the directory appears, and its scores must be those of the package.

Shapes: B texts, T sub-words, W words, C types.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from spanlake.calibration import Calibration
from spanlake.errors import PackageError, UserError, one_line
from spanlake.export.graph import Graph
from spanlake.export.int8 import store_int8
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.span_head import span_mask
from spanlake.modeling.tokens import Batch, PromptTokenizer
from spanlake.package import CARD, TOKENIZER, Package, load_package, model_card, new_directory, repack

SETTINGS = "runtime.json"
TOLERANCE = 1e-3  # between the scores of a graph and those of its package

_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_EXTRAS = {"onnx": "export", "openvino": "openvino"}
_AXES = {
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "tokens"),
    "word_positions": ("batch", "words"),
    "type_positions": ("batch", "types"),
    "word_counts": ("batch",),
}

_Inputs = tuple[torch.Tensor, ...]  # in the order of _AXES
_Run = Callable[[dict[str, Any]], Any]  # from arrays by name to an array of scores


def write_runtime(package: Package, directory: Path, runtime: str, *, int8: bool = False) -> None:
    """Writes `package` into `directory` for `runtime`, either whole or not at all.

    With `int8`, which goes with onnx alone, the weights are those of a package that `repack` writes in int8.

    Raises `UserError` for int8 with another runtime, and where a library is missing. Raises `PackageError` where the
    model has no graph, the graph's scores differ from the package's, or `directory` is not empty or cannot be written.
    """
    if int8 and runtime != "onnx":
        raise UserError(
            f"--int8 goes with --to onnx, not with --to {runtime}, whose int8 scores differ from the package's by more "
            f"than {TOLERANCE}; leave it out."
        )
    if package.config.labels_encoder is not None:
        raise PackageError(
            f"{package.name} is a bi-encoder, which has no graph for {runtime}; export it with --to gliner, or choose "
            "a model without a labels encoder."
        )
    if package.config.counting is not None:
        raise PackageError(
            f"{package.name} is a GLiNER2 model, which has no graph for {runtime}; use the package itself."
        )
    missing = [name for name in _NEEDS[runtime] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"An export to {runtime} needs {' and '.join(missing)}, not installed here; run: pip install "
            f"'spanlake[{_EXTRAS[runtime]}]'."
        )
    with new_directory(directory, "export") as draft:
        if int8:
            repack(package, draft.parent / "int8", name=package.name, int8=True)
            package = load_package(draft.parent / "int8")
        _write(package, draft, runtime, int8)


def _write(package: Package, draft: Path, runtime: str, int8: bool) -> None:
    graph = Graph(package.model, package.calibration or Calibration()).eval()
    program = _exported(graph, package.config)
    if int8:
        store_int8(program.model)
    if runtime == "onnx":
        program.save(draft / "model.onnx")
        run = _onnx_runner(draft / "model.onnx")
    else:
        with tempfile.TemporaryDirectory(dir=draft.parent) as between:
            program.save(Path(between) / "model.onnx")
            run = _write_openvino(Path(between) / "model.onnx", draft / "model.xml")
    _compare(package, run, runtime)
    (draft / TOKENIZER).write_text(package.tokenizer.backend.to_str(pretty=True), encoding="utf-8")
    (draft / SETTINGS).write_text(json.dumps(settings(package), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (draft / CARD).write_text(model_card(package.name, package.config, package.metadata), encoding="utf-8")


def settings(package: Package) -> dict[str, Any]:
    """Returns the content of runtime.json: all that a reader of the graph must know beside the tokenizer."""
    config, calibration = package.config, package.calibration or Calibration()
    assert isinstance(package.tokenizer, PromptTokenizer)
    return {
        "format": 1,
        "name": package.name,
        "fingerprint": package.fingerprint,
        **package.tokenizer.layout,
        "pad_id": config.pad_token_id,
        "splitter": config.splitter,
        "span_head": config.span_head,
        "max_width": config.max_width,
        "max_words": config.max_words,
        "max_tokens": config.max_tokens,
        "max_labels": config.max_labels,
        "threshold": calibration.threshold,
        "thresholds": dict(sorted(calibration.thresholds.items())),
    }


def _exported(graph: Graph, config: ModelConfig) -> Any:
    """Returns the graph as a `torch.onnx.ONNXProgram`. Raises `PackageError` where the encoder cannot be traced."""
    inputs = _random_inputs(config, texts=2, words=7, types=3)
    free = tuple(dict.fromkeys(range(len(axes)), torch.export.Dim.DYNAMIC) for axes in _AXES.values())
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                inputs,
                input_names=[*_AXES],
                output_names=["scores"],
                dynamic_shapes=free,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise PackageError(
            f"The encoder {config.encoder['model_type']!r} cannot be exported ({type(error).__name__} in torch.onnx: "
            f"{one_line(error)}); choose a model with the encoder bert or deberta-v2, or serve the package itself."
        ) from error
    assert program is not None
    _tidy(program.model.graph)
    return program


def _tidy(graph: Any) -> None:
    """Names the free sizes of inputs and scores, leaves others to the runtime, and drops names of source files."""
    import onnx_ir

    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.shape = None
    for value, axes in zip(graph.inputs, _AXES.values(), strict=True):
        value.shape = onnx_ir.Shape(axes)
    graph.outputs[0].shape = onnx_ir.Shape(["batch", "words", None, "types"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's warnings, which concern its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx_runner(path: Path) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["scores"], inputs)[0]


def _write_openvino(source: Path, target: Path) -> _Run:
    import openvino

    model = openvino.convert_model(source)
    openvino.save_model(model, target, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(inputs)[0]


def _compare(package: Package, run: _Run, runtime: str) -> None:
    """Runs short, long and many-label batches. Raises `PackageError` where a score differs by more than TOLERANCE."""
    config = package.config
    calibration = package.calibration or Calibration()
    longest = max(1, min(config.max_words, config.max_tokens - 8))
    for texts, words, types in ((1, 1, 1), (3, 9, 2), (2, 5, 40), (1, longest, 4)):
        inputs = _random_inputs(config, texts, words, types)
        input_ids, attention_mask, word_positions, type_positions, word_counts = inputs
        counts = word_counts.tolist()
        with torch.inference_mode():
            logits = package.model(
                Batch(input_ids, attention_mask, word_positions, type_positions, counts, [types] * texts)
            )
        real = span_mask(counts, words, 1 if config.token_level else config.max_width, logits.device)
        ours = torch.sigmoid(logits.float() * calibration.scale + calibration.shift) * real.unsqueeze(-1)
        theirs = torch.as_tensor(run({name: each.numpy() for name, each in zip(_AXES, inputs, strict=True)}))
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE):
            raise PackageError(
                f"The scores of the {runtime} graph differ from those of {package.name} by more than {TOLERANCE}; "
                "serve the package itself, or choose another runtime."
            )


def _random_inputs(config: ModelConfig, texts: int, words: int, types: int) -> _Inputs:
    """Returns a batch in which each word is a sub-word, and the texts after the first have a word less."""
    numbers = torch.Generator().manual_seed(1)
    beside = min(2 * types, config.max_tokens - words)  # the types may share sub-words
    length = beside + words
    counts = torch.full((texts,), words)
    counts[1:] -= 1
    ids = torch.randint(config.encoder["vocab_size"], (texts, length), generator=numbers)
    mask = (torch.arange(length) < (beside + counts).unsqueeze(1)).long()
    places = torch.arange(words)
    word_positions = torch.where(places < counts.unsqueeze(1), beside + places, 0)
    type_positions = torch.randint(beside, (texts, types), generator=numbers)
    return torch.where(mask > 0, ids, config.pad_token_id), mask, word_positions, type_positions, counts
