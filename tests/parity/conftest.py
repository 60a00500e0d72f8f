"""Checkpoints with random weights, built by the published library itself, which is the oracle.

Weights are drawn wide enough that attention, positions and the LSTM move the scores, and scaled so that some spans pass
a threshold of 0.5 and most do not: two implementations that differ anywhere differ in their entities.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from gliner import GLiNER
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from spanlake.inference.extractor import Extractor
from spanlake.inference.planning import Row, group_labels, plan_rows
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import cut_text
from spanlake.package import open_package

SENTENCES = (
    "Alain Farley works at McGill University in Montreal, Quebec.",
    "The New York Times reported on 12 March 2021 that Apple had bought a start-up for $3.5 million.",
    "Marie Curie won the Nobel Prize in Physics in 1903 and, later, the one in Chemistry!",
    "FC Barcelona lost 2-1 to Real_Madrid; Lionel Messi scored the only goal.",
    "Zürich and São Paulo signed an agreement on climate-change policy (see Annex B).",
    "Dr. O'Neill's patients were treated with acetylsalicylic acid between May and June.",
)
# Edges of what a text may be: nothing, one word, letters beyond ASCII.
TEXTS = [
    "Alain Farley works at McGill University in Montreal, Quebec.",
    "The New York Times reported on 12 March 2021 that Apple had bought a start-up for $3.5 million.",
    "",
    "Zürich and São Paulo signed an agreement on climate-change policy (see Annex B).",
    "x",
]
CLOSE = 1e-4  # scores of the two implementations
ROUNDING = 1e-5  # between two scores in float32, after sums in another order
LABELS = ("person", "organization", "location", "date", "sports team", "award", "Person", "chemical compound")


class Found(NamedTuple):
    start: int
    end: int
    label: str
    text: str
    score: float


@dataclass(frozen=True)
class Kind:
    """One sort of checkpoint. `tokenizer` names a function below; the rest are settings of the library."""

    name: str
    tokenizer: str
    encoder: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    safetensors: bool = True
    labels_tokenizer: str = ""  # of a bi-encoder


_BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
_DEBERTA = {**_BERT, "model_type": "deberta-v2", "relative_attention": True, "position_biased_input": False} | {
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
_ROBERTA = {**_BERT, "model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}
_MODERNBERT = {"model_type": "modernbert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4} | {
    "intermediate_size": 48,
    "local_attention": 16,
    "pad_token_id": 0,
}
_WITHOUT_LSTM = {"num_rnn_layers": 0}

KINDS = (
    Kind("deberta", "unigram", _DEBERTA, {"hidden_size": 24}),
    Kind("deberta without projection or LSTM", "unigram", _DEBERTA, {"hidden_size": 32, **_WITHOUT_LSTM}, False),
    Kind("deberta, first version", "unigram", _DEBERTA, {"hidden_size": 24, "span_mode": "marker"}, False),
    Kind("deberta, K 3", "unigram", _DEBERTA, {"hidden_size": 32, "max_width": 3}),
    Kind(
        "deberta with convolution and absolute positions",
        "unigram",
        {**_DEBERTA, "position_biased_input": True, "conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False},
        {"hidden_size": 24, "span_mode": "marker", **_WITHOUT_LSTM},
    ),
    Kind("bert uncased", "wordpiece_uncased", _BERT, {"hidden_size": 24, **_WITHOUT_LSTM}),
    Kind("bert cased", "wordpiece_cased", _BERT, {"hidden_size": 32, "span_mode": "marker"}, False),
    Kind("bert, K 1", "wordpiece_cased", _BERT, {"hidden_size": 24, "max_width": 1}),
    Kind("bert, types at their own words", "wordpiece_uncased", _BERT, {"hidden_size": 24, "embed_ent_token": False}),
    Kind("bert with fusion weights", "wordpiece_cased", _BERT, {"hidden_size": 32, "post_fusion_schema": "l2l-l2t"}),
    Kind("roberta", "byte_level", _ROBERTA, {"hidden_size": 24, "max_width": 8}),
    Kind(
        "electra",
        "wordpiece_uncased",
        {**_BERT, "model_type": "electra", "embedding_size": 16},
        {"hidden_size": 40, "max_width": 6},
    ),
    Kind("modernbert", "byte_level", _MODERNBERT, {"hidden_size": 24, **_WITHOUT_LSTM}),
)

TOKEN_LEVEL = {"span_mode": "token_level"}
TOKEN_KINDS = (
    Kind("token-level deberta", "unigram", _DEBERTA, {"hidden_size": 24, **TOKEN_LEVEL}),
    Kind("token-level bert", "wordpiece_uncased", _BERT, {"hidden_size": 32, **TOKEN_LEVEL, **_WITHOUT_LSTM}, False),
    Kind("token-level modernbert", "byte_level", _MODERNBERT, {"hidden_size": 24, **TOKEN_LEVEL, **_WITHOUT_LSTM}),
)

_MINI_BERT = {**_BERT, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
BI_KINDS = (
    Kind(
        "bi-encoder deberta and bert",
        "unigram",
        _DEBERTA,
        {"hidden_size": 24, "labels_encoder_config": _MINI_BERT},
        labels_tokenizer="wordpiece_uncased",
    ),
    Kind(
        "bi-encoder bert and bert without projections, first version",
        "wordpiece_cased",
        _BERT,
        {"hidden_size": 32, "span_mode": "marker", "max_width": 5, "labels_encoder_config": _BERT, **_WITHOUT_LSTM},
        False,
        "wordpiece_uncased",
    ),
    Kind(
        "bi-encoder modernbert and roberta",
        "byte_level",
        _MODERNBERT,
        {"hidden_size": 24, "labels_encoder_config": _ROBERTA, **_WITHOUT_LSTM},
        labels_tokenizer="byte_level",
    ),
    Kind(
        "token-level bi-encoder deberta and deberta",
        "unigram",
        _DEBERTA,
        {"hidden_size": 24, "labels_encoder_config": {**_DEBERTA, "hidden_size": 16}, **TOKEN_LEVEL},
        labels_tokenizer="unigram",
    ),
)


# Vocabularies are written out, not trained: training breaks ties by chance. Every second word is one piece; the others
# fall into their beginnings, their ends and letters.
_WORDS = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(SENTENCES))))
_WHOLE = _WORDS[::2]
_BEGINNINGS = sorted({word[:3] for word in _WORDS if len(word) > 3} - set(_WHOLE))
_ENDS = sorted({word[-2:] for word in _WORDS if len(word) > 3})
_LETTERS = sorted({*"".join(_WORDS), *"abcdefghijklmnopqrstuvwxyz0123456789"})


def wordpiece(*, lowercase: bool) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*_WHOLE, *_BEGINNINGS, *_LETTERS, *(f"##{piece}" for piece in (*_ENDS, *_LETTERS))]
    if lowercase:
        pieces = [piece.lower() for piece in pieces]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def wordpiece_uncased() -> PreTrainedTokenizerFast:
    return wordpiece(lowercase=True)


def wordpiece_cased() -> PreTrainedTokenizerFast:
    return wordpiece(lowercase=False)


def sentencepiece(special: list[str], template: str, named: dict[str, str]) -> PreTrainedTokenizerFast:
    """A unigram model. `special` tokens come first, in this order; `named` gives them the library's names."""
    pieces = ["▁", *(f"▁{piece}" for piece in (*_WHOLE, *_BEGINNINGS)), *_ENDS, *_LETTERS]
    scores = dict.fromkeys(special, 0.0) | {piece: -4.0 - 2.0 / len(piece) for piece in pieces}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=special.index(named["unk_token"])))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([*special, *([named["mask_token"]] if "mask_token" in named else [])])
    around = [(token, special.index(token)) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def unigram() -> PreTrainedTokenizerFast:
    """Like that of DeBERTa-v3."""
    named = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    named |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return sentencepiece(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[CLS] $A [SEP]", named)


def unigram_roberta() -> PreTrainedTokenizerFast:
    """Like that of XLM-RoBERTa."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    named |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return sentencepiece(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", named)


def unigram_t5() -> PreTrainedTokenizerFast:
    """Like that of mT5, with nothing before a text."""
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return sentencepiece(["<pad>", "</s>", "<unk>"], "$A </s>", named)


def gemma() -> PreTrainedTokenizerFast:
    """Like that of mmBERT: byte pairs over words with ▁ for a space, and bytes for what they cannot spell."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in _WHOLE for i in range(1, len(word))))
    spelt = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS]
    pieces = dict.fromkeys([*spelt, *(left + right for left, right in merges)])
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(special)
    around = [("<bos>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=around)
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **named)


def byte_level() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    written = [word for word in _WHOLE if word.isascii()]
    merges = list(dict.fromkeys(("Ġ" + word[:i], word[i]) for word in written for i in range(len(word))))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*special, *alphabet, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=512,
    )


TOKENIZERS = {
    maker.__name__: maker
    for maker in (unigram, unigram_roberta, unigram_t5, gemma, wordpiece_uncased, wordpiece_cased, byte_level)
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and parameter.dim() == 1:
            value = 0.1 * noise + (1 if name.endswith("weight") else 0)
        elif parameter.dim() == 1:
            value = 0.2 * noise
        elif "embeddings" in name:
            value = noise
        else:
            value = 1.3 * noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value)


def scale(model: Any) -> None:
    """Gives the logits of every type the mean -2 and a spread of 2, as if most spans were no entity.

    At token level, the mean is 0, because three scores of a span must be high.
    """
    if model.config.span_mode == "token_level":
        prepared = model.prepare_batch(list(SENTENCES), list(LABELS))
        logits = model.run_batch(model.collate_batch(prepared["input_x"], prepared["entity_types"]))[0]
        out = model.model.scorer.out_mlp[3]
        out.weight.data.mul_(2 / logits.std())
        out.bias.data.zero_()
        return
    joint = model.model.span_rep_layer.span_rep_layer.out_project
    spans = joint if isinstance(joint, torch.nn.Linear) else joint[3]
    types = model.model.prompt_rep_layer[3]
    for layer in (spans, types):  # the first dimension is left to the mean
        layer.weight.data[0] = 0
        layer.bias.data[0] = 0
    prepared = model.prepare_batch(list(SENTENCES), list(LABELS))
    batch = model.collate_batch(prepared["input_x"], prepared["entity_types"])
    output = model.run_batch(batch, return_vectors=True)
    real = batch["span_mask"].view(output.span_embeddings.shape[:3])
    spans.bias.data.sub_(output.span_embeddings[real].mean(0))
    factor = 2 / model.run_batch(batch)[0][real].std()
    types.weight.data.mul_(factor)
    types.bias.data.mul_(factor)
    spans.bias.data[0], types.bias.data[0] = 1, -2


def build(kind: Kind, directory: Path, tokenizer: Path) -> Path:
    settings = {"model_name": str(tokenizer), "encoder_config": dict(kind.encoder), **copy.deepcopy(kind.settings)}
    if kind.labels_tokenizer:
        labels_tokenizer = directory.with_name(directory.name + "-labels-tokenizer")
        TOKENIZERS[kind.labels_tokenizer]().save_pretrained(labels_tokenizer)
        settings["labels_encoder"] = str(labels_tokenizer)
        settings["labels_encoder_config"]["vocab_size"] = len(TOKENIZERS[kind.labels_tokenizer]())
        settings["encoder_config"]["vocab_size"] = len(TOKENIZERS[kind.tokenizer]())
    model = GLiNER.from_config(settings, backbone_from_pretrained=False)
    randomise(model.model, seed=len(kind.name))
    scale(model)
    model.save_pretrained(directory, safe_serialization=kind.safetensors)
    return directory


class Oracle:
    """The published library's reading of a checkpoint."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.known: dict[tuple[str, ...], torch.Tensor] = {}
        self.model = GLiNER.from_pretrained(str(directory), local_files_only=True, **options)

    def entities(self, texts: list[str], labels: Any, **options: Any) -> list[list[Found]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.model.inference(texts, labels, **options)
        return [
            sorted(Found(each["start"], each["end"], each["label"], each["text"], each["score"]) for each in of_text)
            for of_text in found
        ]

    def logits(self, text: str, labels: list[str]) -> torch.Tensor:
        """[W, K, C] of one text by itself."""
        key = (text, *labels)
        if key not in self.known:
            prepared = self.model.prepare_batch([text], labels)
            batch = self.model.collate_batch(prepared["input_x"], prepared["entity_types"])
            self.known[key] = self.model.run_batch(batch)[0][0]
        return self.known[key]

    def decided(self, text: str, labels: list[str], threshold: float) -> bool:
        """Whether the entities of a text hang on no difference as small as rounding makes it.

        Two spans that exclude each other and score the same within it, or one that scores the threshold, may be taken
        either way.
        """
        if not text.strip():
            return True
        scores = torch.sigmoid(self.logits(text, labels))
        start, extra, _ = places = torch.nonzero(scores > threshold - ROUNDING, as_tuple=True)
        inside = start + extra < len(scores)
        start, end, score = start[inside], (start + extra)[inside], scores[places][inside]
        overlap = (start.view(-1, 1) <= end) & (end.view(-1, 1) >= start)
        near = (score.view(-1, 1) - score).abs() < ROUNDING
        return not (overlap & near).triu(1).any() and not ((score - threshold).abs() < ROUNDING).any()


class Ours:
    """Our reading of a checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.package = open_package(str(directory))
        self.extractor = Extractor(self.package, torch.device("cpu"), torch.float32)

    def entities(self, texts: list[str], labels: Any, **options: Any) -> list[list[Found]]:
        found = self.extractor.extract(texts, labels, **options)
        return [
            sorted(Found(each.start, each.end, each.label, each.text, each.score) for each in of_text)
            for of_text in found
        ]

    def rows(self, text: str, labels: list[str]) -> list[Row]:
        tokenizer, config = self.package.tokenizer, self.package.config
        groups = group_labels(Settings.make(labels), tokenizer, config)
        return list(plan_rows(0, cut_text(text, tokenizer), groups, tokenizer, config))

    @torch.inference_mode()
    def logits(self, rows: list[Row]) -> list[torch.Tensor]:
        """[W, K, C] of each row, all in one batch."""
        batch = self.package.tokenizer.collate(
            [(row.group.prompt, row.words) for row in rows], self.package.config.pad_token_id
        )
        logits = self.package.model(batch)
        return [each[: len(row.words), :, : row.group.count] for each, row in zip(logits, rows, strict=True)]


class Workshop:
    """Makes each kind of checkpoint once, and reads it once each way."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.oracles: dict[str, Oracle] = {}
        self.readings: dict[Path, Ours] = {}

    def oracle(self, kind: Kind) -> Oracle:
        if kind.name not in self.oracles:
            directory = self.root / kind.name.replace(" ", "-").replace(",", "")
            tokenizer = directory.with_name(directory.name + "-tokenizer")
            TOKENIZERS[kind.tokenizer]().save_pretrained(tokenizer)
            self.oracles[kind.name] = Oracle(build(kind, directory, tokenizer))
        return self.oracles[kind.name]

    def build(self, name: str, tokenizer: Path) -> Path:
        """A DeBERTa checkpoint with another tokenizer."""
        return build(KINDS[0], self.root / name, tokenizer)

    def ours(self, directory: Path) -> Ours:
        if directory not in self.readings:
            self.readings[directory] = Ours(directory)
        return self.readings[directory]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)  # the matrices are tiny
    return Workshop(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def oracle(request: pytest.FixtureRequest, workshop: Workshop) -> Oracle:
    return workshop.oracle(request.param)


@pytest.fixture
def ours(oracle: Oracle, workshop: Workshop) -> Ours:
    return workshop.ours(oracle.directory)


@pytest.fixture(params=TOKEN_KINDS, ids=lambda kind: kind.name)
def token_oracle(request: pytest.FixtureRequest, workshop: Workshop) -> Oracle:
    return workshop.oracle(request.param)


@pytest.fixture(params=BI_KINDS, ids=lambda kind: kind.name)
def bi_oracle(request: pytest.FixtureRequest, workshop: Workshop) -> Oracle:
    return workshop.oracle(request.param)


@pytest.fixture
def bi_deberta(workshop: Workshop) -> Oracle:
    return workshop.oracle(BI_KINDS[0])


@pytest.fixture
def deberta_tokens(workshop: Workshop) -> Oracle:
    return workshop.oracle(TOKEN_KINDS[0])


@pytest.fixture
def deberta(workshop: Workshop) -> Oracle:
    return workshop.oracle(KINDS[0])


@pytest.fixture
def bert(workshop: Workshop) -> Oracle:
    """Uncased, with a limit of 512 sub-words."""
    return workshop.oracle(next(kind for kind in KINDS if kind.name == "bert uncased"))


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with other settings, without some of its files, or with other tensors."""

    def change(
        directory: Path,
        *,
        without: Sequence[str] = (),
        tensors: Callable[[dict[str, torch.Tensor]], None] | None = None,
        **settings: Any,
    ) -> Path:
        changed = tmp_path / "changed"
        shutil.copytree(directory, changed)
        for name in without:
            (changed / name).unlink()
        values = json.loads((changed / "gliner_config.json").read_text())
        values |= settings
        (changed / "gliner_config.json").write_text(json.dumps(values))
        if tensors is not None:
            weights = load_file(changed / "model.safetensors")
            tensors(weights)
            save_file(weights, changed / "model.safetensors")
        return changed

    return change


def agree_on_entities(
    oracle: Oracle, ours: Ours, texts: Sequence[str], labels: list[str], *, nested: bool, multi_label: bool
) -> int:
    """Checks that both find the same entities at several thresholds. Returns how many were compared."""
    compared = 0
    for threshold, asked in itertools.product((0.3, 0.5, 0.7), (labels, labels[:1])):
        mine = ours.entities(texts, asked, threshold=threshold, nested=nested, multi_label=multi_label)
        theirs = oracle.entities(
            texts, asked, threshold=threshold, flat_ner=not nested, multi_label=multi_label, batch_size=5
        )
        for one, other in zip(mine, theirs, strict=True):
            assert [entity[:4] for entity in one] == [entity[:4] for entity in other]
            assert [entity.score for entity in one] == pytest.approx([entity.score for entity in other], abs=CLOSE)
            compared += len(one)
    return compared
