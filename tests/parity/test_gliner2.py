"""GLiNER2 checkpoints of the architecture `span`: the same scores and entities as the published library."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import SCRIPTS
from transformers import AutoConfig

from spanlake import Extractor
from spanlake.decoding import Entity
from spanlake.errors import PackageError, UserError
from spanlake.export.runtimes import write_runtime
from spanlake.inference.accelerator import AcceleratorScorer
from spanlake.modeling.gliner_format import write_gliner
from spanlake.package import load_package, open_package, repack
from spanlake.splitters.find import find_splitter
from spanlake.training.encoders import starting_model
from spanlake.training.recipe import ModelSection

from .conftest import _BERT, _DEBERTA, SENTENCES, TOKENIZERS, Ours, randomise

gliner2 = pytest.importorskip("gliner2", reason="gliner2, the reference of these tests, is not installed")

CLOSE = 1e-4
LABELS = ["person", "organization", "location", "Sports Team", "chemical compound"]
TEXTS = [
    *SENTENCES,
    "word",
    "Ada said",
    "Write to O'Neill@example.org or @montreal, see https://example.org/a_b?q=1 today",
    "Zürich and São Paulo: naïve FAÇADE; नरेंद्र मोदी!",
]


@dataclass(frozen=True)
class Made:
    directory: Path
    theirs: Any  # gliner2.GLiNER2


def make(directory: Path, counting: str, encoder: dict[str, Any], tokenizer: str) -> Made:
    from gliner2.configuration import ExtractorConfig

    made = TOKENIZERS[tokenizer]()
    config = AutoConfig.for_model(**encoder, vocab_size=len(made))
    settings = ExtractorConfig(model_name="none", max_width=5, counting_layer=counting)
    model = gliner2.GLiNER2(settings, encoder_config=config, tokenizer=made)
    randomise(model, seed=len(counting))
    with torch.no_grad():
        model.eval().count_pred[-1].bias[0] -= 1000  # at first, every text has some
        out = model.span_rep.span_rep_layer.out_project[3]
        logits = torch.cat([their_logits(model, text).flatten() for text in TEXTS[:3]])
        spread = logits[logits.isfinite()].std()
        out.weight.mul_(2 / spread)
        out.bias.mul_(2 / spread)
        leads = sorted(map(partial(lead, model), TEXTS))
        model.count_pred[-1].bias[0] += (leads[1] + leads[2]) / 2  # two texts have none
    model.save_pretrained(str(directory))
    return Made(directory, gliner2.GLiNER2.from_pretrained(str(directory)).eval())


def encoded(model: Any, text: str) -> tuple[Any, Any, Any]:
    batch = model.processor.collate_fn_inference([(text, {"entities": dict.fromkeys(LABELS, "")})])
    return batch, *model._encode_batch(batch)


def lead(model: Any, text: str) -> float:
    """How far the best count of a text is above the count 0."""
    _, _, [[types]] = encoded(model, text)
    counts = model.count_pred(types[0])
    return float(counts[1:].max() - counts[0])


KINDS = {
    "deberta, count_lstm": ("count_lstm", _DEBERTA, "unigram"),
    "deberta, count_lstm_v2": ("count_lstm_v2", _DEBERTA, "unigram"),
    "bert, count_lstm_moe": ("count_lstm_moe", _BERT, "wordpiece_cased"),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    counting, encoder, tokenizer = KINDS[request.param]
    return make(tmp_path_factory.mktemp("gliner2") / "checkpoint", counting, encoder, tokenizer)


@torch.inference_mode()
def their_logits(model: Any, text: str) -> torch.Tensor | None:
    """[W, K, C] of the words of the text, or None where the library counts no entities."""
    [[logits]], _ = model._compute_direct_span_logits_batched(*encoded(model, text))
    return None if logits is None else logits[0].permute(1, 2, 0)


def test_every_span_has_the_same_score(made: Made) -> None:
    ours = Ours(made.directory)
    rows = [row for text in TEXTS for row in ours.rows(text, LABELS)]
    assert len(rows) == len(TEXTS)
    compared, empty = 0, 0
    for text, logits in zip(TEXTS, ours.logits(rows), strict=True):
        theirs = their_logits(made.theirs, text)
        words, width, _ = logits.shape
        real = torch.arange(words).view(-1, 1) + torch.arange(width) < words
        if theirs is None:
            assert (logits[real].sigmoid() == 0).all()
            empty += 1
            continue
        assert len(theirs) - words in (0, 1)  # the library has appended a period
        torch.testing.assert_close(logits[real], theirs[:words][real], rtol=0, atol=CLOSE)
        compared += int(real.sum())
    assert compared > 200 and empty == 2


@pytest.mark.parametrize("label", LABELS[:3])
def test_the_same_entities(made: Made, label: str) -> None:
    """Of one label, since the library lets those of several overlap, and of texts to which it appends no period."""
    texts = [text for text in TEXTS if text.endswith((".", "!"))]
    extractor = Extractor.load(str(made.directory), device="cpu", precision="float32")
    options = {"include_confidence": True, "include_spans": True, "overlap_policy": "nested"}
    every = made.theirs.batch_extract_entities(texts, [label], threshold=0.0, **options | {"overlap_policy": "allow"})
    scores = [found["confidence"] for each in every for found in each["entities"].get(label, ())]
    highest = sorted(scores)[-100:-60]
    _, threshold = max((high - low, (low + high) / 2) for low, high in pairwise(highest))  # far from every score
    found = extractor.extract(texts, [label], threshold=threshold, nested=True)
    theirs = made.theirs.batch_extract_entities(texts, [label], threshold=threshold, **options)
    for text, mine, each in zip(texts, found, theirs, strict=True):
        wanted = sorted((e["start"], e["end"], e["confidence"]) for e in each["entities"].get(label, ()))
        assert [(e.start, e.end) for e in mine] == [span[:2] for span in wanted], text
        assert [e.score for e in mine] == pytest.approx([span[2] for span in wanted], abs=CLOSE)
    assert sum(map(len, found)) > 10


def place(entity: Entity) -> tuple[int, int, str]:
    return entity.start, entity.end, entity.label


def test_there_and_back_as_a_package(made: Made, tmp_path: Path) -> None:
    package = open_package(str(made.directory))
    repack(package, tmp_path / "package", name="two", int8=False)
    again = load_package(tmp_path / "package")
    assert again.config == package.config
    asked = {"labels": LABELS, "threshold": 0.001}
    extractors = [Extractor(each, torch.device("cpu"), torch.float32) for each in (package, again)]
    one, other = (extractor.extract(TEXTS, **asked) for extractor in extractors)
    assert one == other and sum(map(len, one)) > 10
    extractors[1].scorer = AcceleratorScorer(again, torch.device("cpu"), torch.float32)
    found = extractors[1].extract(TEXTS, **asked)
    assert [list(map(place, each)) for each in found] == [list(map(place, each)) for each in one]
    scores = [entity.score for entities in one for entity in entities]
    assert [entity.score for entities in found for entity in entities] == pytest.approx(scores, abs=1e-5)


def test_words_are_those_of_the_library() -> None:
    split, theirs = find_splitter("gliner2"), gliner2.processing.word_splitter.WhitespaceTokenSplitter()
    for text in [*TEXTS, *(text for text, _ in SCRIPTS.values()), "", " \n", "a\u200db HTTP://X.org WWW.a-b_c"]:
        assert split(text).tolist() == [[start, end] for _, start, end in theirs(text)]


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    from gliner2.configuration import ExtractorConfig

    two_and_a_half = json.loads(ExtractorConfig(architecture="boundary").to_json_string(use_diff=False))
    span = json.loads(ExtractorConfig().to_json_string(use_diff=False))
    cases = (
        (two_and_a_half, r'architecture "boundary"; this version reads those with "span"\.$'),
        (
            {**span, "counting_layer": "count_tree"},
            r'counting_layer "count_tree"; .* "count_lstm" or "count_lstm_v2" or',
        ),
        ({**span, "token_pooling": "mean"}, r'token_pooling "mean"; this version reads those with "first"\.$'),
        (
            {**span, "span_head": {"span_mode": "marker"}},
            r'span_mode "marker"; this version reads those with "markerV0"',
        ),
        ({**span, "span_head": "markerV0"}, r'config.json has span_head "markerV0"; fetch the checkpoint again'),
    )
    for values, message in cases:
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(PackageError, match=message):
            open_package(str(tmp_path))


def test_damage_is_named(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.directory, copy)
    tensors = load_file(copy / "model.safetensors")
    name = "count_embed.gru.weight_hh_l0"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, copy / "model.safetensors")
    with pytest.raises(PackageError, match=f"1 are missing, such as {name}"):
        open_package(str(copy))
    save_file({**tensors, "classifier.9.weight": torch.zeros(2)}, copy / "model.safetensors")
    open_package(str(copy))  # weights of classification are left out
    encoder = copy / "encoder_config" / "config.json"
    values = json.loads(encoder.read_text())
    encoder.write_text(json.dumps({**values, "hidden_size": 64}))
    with pytest.raises(PackageError, match="do not fit its architecture: .* has the shape"):
        open_package(str(copy))
    del values["model_type"]
    encoder.write_text(json.dumps(values))
    with pytest.raises(PackageError, match="encoder type None is unknown"):
        open_package(str(copy))
    encoder.unlink()
    with pytest.raises(PackageError, match="encoder_config/config.json cannot be read as JSON"):
        open_package(str(copy))


def test_what_cannot_be_made_of_one(made: Made, tmp_path: Path) -> None:
    package = open_package(str(made.directory))
    with pytest.raises(PackageError, match="its counting of entities has no form in the gliner library"):
        write_gliner(tmp_path / "out", package.model, package.tokenizer.backend)
    with pytest.raises(PackageError, match="is a GLiNER2 model, which has no graph for onnx"):
        write_runtime(package, tmp_path / "out", "onnx")
    with pytest.raises(UserError, match="is a GLiNER2 model, which finds entities but cannot be trained here"):
        starting_model(ModelSection(start=str(made.directory)))
