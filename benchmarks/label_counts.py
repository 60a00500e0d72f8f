"""Measures what more labels cost a bi-encoder and a model that reads labels in a prompt, in one run.

    python benchmarks/label_counts.py [--labels 10,100,1000,10000] [--texts 8] [--rounds 3]

Both models have the same encoder for texts, of the size of MiniLM-L6, and random weights, because only the cost is
measured; both find almost nothing at the threshold of 0.999. The figures are processor time of all threads per 1,000
words, which is comparable on a busy machine, as medians over the rounds; the sides take turns. The bi-encoder's labels
are encoded before, as `spanlake labels` does; the column "encoding" has the processor time of that, once for all texts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from arguments import numbers, plain_errors
from machine import machine

from spanlake.inference.extractor import Extractor
from spanlake.inference.label_vectors import encode_labels
from spanlake.inference.settings import Settings
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.label_tokens import BiTokenizer
from spanlake.modeling.model import SpanModel
from spanlake.options import positive
from spanlake.package import open_package, save_package
from spanlake.text import word_offsets

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
THRESHOLD = 0.999
KINDS = ("person", "place", "thing", "event")
ENCODER: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--labels", type=numbers, default="10,100,1000,10000", help="numbers of labels, with commas between them"
    )
    parser.add_argument("--texts", type=positive, default=8)
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    print(machine(torch.get_num_threads(), "torch", "tokenizers"))
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        compare(Path(directory), args.labels, args.texts, args.rounds)


def compare(directory: Path, counts: list[int], texts: int, rounds: int) -> None:
    prompted, apart = models(directory)
    passages = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()[:texts]
    words = sum(len(word_offsets(text)) for text in passages)
    print(f"{texts} texts, {words} words; CPU seconds per 1,000 words, medians of {rounds} rounds\n")
    print(f"{'labels':>7}{'passes':>8}{'prompt':>10}{'bi-encoder':>12}{'ratio':>8}{'encoding':>10}")
    for count in counts:
        labels = [f"{KINDS[i % len(KINDS)]} {i}" for i in range(count)]
        encoding = encoding_time(apart, labels)
        sides: list[Callable[[], object]] = [
            lambda labels=labels: prompted.extract(passages, labels, THRESHOLD),
            lambda labels=labels: apart.extract(passages, labels, THRESHOLD),
        ]
        apart.extract(passages[:1], labels, THRESHOLD)  # encodes the labels
        one, other = (seconds / words * 1000 for seconds in medians(sides, rounds))
        passes, _ = prompted.prompt_size(Settings.make(labels, THRESHOLD))
        print(f"{count:>7}{passes:>8}{one:>10.2f}{other:>12.2f}{one / other:>7.1f}x{encoding:>9.2f}s", flush=True)


def models(directory: Path) -> tuple[Extractor, Extractor]:
    """Returns the model with a prompt and the bi-encoder."""
    mini = open_package("mini")
    tokenizer = mini.tokenizer.backend
    encoder = {**ENCODER, "vocab_size": tokenizer.get_vocab_size()}
    config = ModelConfig(
        encoder=encoder,
        hidden_size=384,
        span_head="marker_v0",
        entity_token=mini.config.entity_token,
        separator_token=mini.config.separator_token,
        entity_token_id=mini.config.entity_token_id,
        max_labels=None,
    )
    torch.manual_seed(1)
    save_package(directory / "prompted", SpanModel(config), tokenizer, name="prompted", metadata={}, card="")
    bi = ModelConfig(**{**config.to_dict(), "labels_encoder": {**encoder, "max_position_embeddings": 128}})
    model = BiEncoderModel(bi)
    save_package(directory / "apart", model, tokenizer, name="apart", metadata={}, card="", labels_tokenizer=tokenizer)
    prompted, apart = (
        Extractor.load(str(directory / name), device="cpu", precision="float32") for name in ("prompted", "apart")
    )
    return prompted, apart


def encoding_time(apart: Extractor, labels: list[str]) -> float:
    """Returns the CPU seconds of encoding the labels once."""
    model, tokenizer = apart.package.model, apart.package.tokenizer
    assert isinstance(model, BiEncoderModel) and isinstance(tokenizer, BiTokenizer)
    began = time.process_time()
    encode_labels(model, tokenizer, [tokenizer.label(label) for label in labels], torch.device("cpu"))
    return time.process_time() - began


def medians(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Returns the median CPU seconds of each side over the rounds. The sides take turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, taken in zip(sides, seconds, strict=True):
            began = time.process_time()
            side()
            taken.append(time.process_time() - began)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    with plain_errors():
        main()
