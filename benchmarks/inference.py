"""Measures texts per second of the Extractor and of the gliner library, with the same checkpoint, in one run.

    python benchmarks/inference.py [--model mini] [--texts 200] [--rounds 3] [--threads 2]

Both sides use the same weights (gliner reads the exported package), passages, labels and threshold, each with its own
default batch size. They take turns in each round, and the figure is the median round. gliner cuts texts at its word
limit, so only passages within that limit are timed.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gliner
import pyarrow.parquet as pq
import torch
from arguments import plain_errors
from machine import machine

from spanlake.inference.extractor import Extractor
from spanlake.modeling.gliner_format import write_gliner
from spanlake.options import positive
from spanlake.package import open_package
from spanlake.text import word_offsets

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = re.findall(
    r"\w+",
    """
    person organization location date film song team award event product language book law building country city
    disease drug animal plant vehicle weapon food currency religion
    """,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--texts", type=positive, default=200)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads, "gliner", "torch", "transformers"))
    print(f"model {args.model}")

    passages = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()
    ours = Extractor.load(args.model, device="cpu", precision="float32", threads=args.threads)
    limit = ours.package.config.max_words
    long_texts = [text for text in passages if len(word_offsets(text)) <= limit][: args.texts]
    short_texts = [text.split("\n")[0][:200] for text in long_texts]
    half = Extractor.load(args.model, device="cpu", precision="bfloat16", threads=args.threads)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "checkpoint"
        package = open_package(args.model)
        write_gliner(checkpoint, package.model, package.tokenizer.backend)
        theirs = gliner.GLiNER.from_pretrained(str(checkpoint)).eval()

    print(f"{'texts':<22}{'labels':>7}{'gliner':>10}{'float32':>10}{'ratio':>7}{'bfloat16':>10}{'ratio':>7}  texts/s")
    for name, texts in (("first sentences", short_texts), ("whole passages", long_texts)):
        words = sum(len(word_offsets(text)) for text in texts) / len(texts)
        for labels in (LABELS[:5], LABELS[:25]):
            sides: list[Callable[[], object]] = [
                lambda texts=texts, labels=labels: theirs.inference(texts, labels, threshold=0.5),
                lambda texts=texts, labels=labels: ours.extract(texts, labels),
                lambda texts=texts, labels=labels: half.extract(texts, labels),
            ]
            reference, single, bfloat = (len(texts) / seconds for seconds in medians(sides, args.rounds))
            print(
                f"{f'{name}, {words:.0f} words':<22}{len(labels):>7}{reference:>10.1f}{single:>10.1f}"
                f"{single / reference:>6.1f}x{bfloat:>10.1f}{bfloat / reference:>6.1f}x",
                flush=True,
            )


def medians(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Returns the median seconds of each side over `rounds` rounds. The sides take turns, after one warm-up round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if turn:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    with plain_errors():
        main()
