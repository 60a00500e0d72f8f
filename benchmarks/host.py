"""Measures what the host spends on texts beside the model, against `Tokenizer.encode_batch` alone on the same texts.

    python benchmarks/host.py [--texts 2000] [--rounds 5] [--model mini]

A model that costs nothing replaces the model: it finds a name at every twelfth word, among ten labels. What it takes to
lay out its logits is not counted. The first table gives the processor time of all threads, which is comparable on a
busy machine, as medians over the rounds; the sides take turns. The second gives texts and words per second by the clock
on one core and on two, and is comparable only on a machine that is idle otherwise.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from arguments import plain_errors
from machine import machine

from spanlake.inference.candidates import choose, join
from spanlake.inference.extractor import Extractor
from spanlake.inference.planning import group_labels, plan_batches, plan_rows
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import cut_texts
from spanlake.modeling.tokens import Batch
from spanlake.options import positive

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = ["person", "organization", "location", "date", "product", "film", "award", "team", "event", "city"]
CHUNK = 512  # texts that are cut, and chosen, together
BATCH_TOKENS = 32768  # as on a GPU


class FreeModel(torch.nn.Module):
    """Gives every twelfth word the first label but one."""

    def __init__(self, max_width: int) -> None:
        super().__init__()
        self.seconds = 0.0  # of processor time
        self._max_width = max_width

    def forward(self, batch: Batch) -> torch.Tensor:
        began = time.thread_time()
        texts, words = batch.word_positions.shape
        logits = torch.full((texts, words, self._max_width, batch.type_positions.shape[1]), -9.0)
        logits[:, ::12, 1, 0] = 3.0
        self.seconds += time.thread_time() - began
        return logits


class Host:
    def __init__(self, model: str, texts: list[str]) -> None:
        self._extractor = Extractor.load(model, device="cpu", precision="float32", batch_tokens=BATCH_TOKENS, threads=1)
        self._model = FreeModel(self._extractor.package.config.max_width)
        self._extractor.scorer._model = self._model  # type: ignore[assignment]
        self._texts = texts
        self._settings = Settings.make(LABELS)
        self.stages: dict[str, list[float]] = {}

    def encode(self) -> float:
        return processor_time(lambda: self._extractor.package.tokenizer.backend.encode_batch(self._texts))

    def extract(self) -> float:
        before = self._model.seconds
        taken = processor_time(lambda: self._extractor.extract(self._texts, LABELS))
        return taken - (self._model.seconds - before)

    def by_stage(self) -> None:
        """Adds the processor time of each stage, taken one after the other in this thread."""
        package, scorer = self._extractor.package, self._extractor.scorer
        taken: dict[str, float] = {}
        groups = group_labels(self._settings, package.tokenizer, package.config)
        for at in range(0, len(self._texts), CHUNK):
            marks = [time.process_time()]
            cuts = cut_texts(self._texts[at : at + CHUNK], package.tokenizer)
            marks.append(time.process_time())
            rows = [
                row
                for i, cut in enumerate(cuts)
                for row in plan_rows(i, cut, groups, package.tokenizer, package.config)
            ]
            batches = plan_batches(rows, BATCH_TOKENS)
            marks.append(time.process_time())
            passes = [scorer.prepare(batch) for batch in batches]
            marks.append(time.process_time())
            before = self._model.seconds
            found = [scorer.submit(one).result() for one in passes]
            marks.append(time.process_time() - (self._model.seconds - before))
            began = time.process_time()
            choose([(cut, self._settings) for cut in cuts], join(found))
            marks.append(marks[-1] + time.process_time() - began)
            names = ("words and sub-words", "rows and batches", "layout", "thresholds", "choice of entities")
            for name, start, stop in zip(names, marks, marks[1:], strict=False):
                taken[name] = taken.get(name, 0.0) + stop - start
        for name, seconds in taken.items():
            self.stages.setdefault(name, []).append(seconds)

    def rate(self, cores: set[int]) -> float:
        """Returns texts per second by the clock, on these cores."""
        everything = os.sched_getaffinity(0)
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), cores)
        began = time.perf_counter()
        self._extractor.extract(self._texts, LABELS)
        seconds = time.perf_counter() - began
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), everything)
        return len(self._texts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=positive, default=2000)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "torch", "numpy", "tokenizers", "pyarrow"))

    passages = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()
    texts = [passages[i % len(passages)] for i in range(args.texts)]
    words = sum(len(text.split()) for text in texts)
    print(f"{len(texts)} texts, {words} words, {len(LABELS)} labels; median of {args.rounds} rounds\n")
    host = Host(args.model, texts)
    host.extract()  # fills the cache of words
    encoding, extraction = [], []
    for _ in range(args.rounds):
        encoding.append(host.encode())
        extraction.append(host.extract())
        host.by_stage()
    base = statistics.median(encoding)
    print(f"{'':<24}{'CPU s':>8}{'us/word':>9}{'ratio':>8}")
    rows = {"encode_batch alone": encoding, "whole host path": extraction, **host.stages}
    for name, seconds in rows.items():
        taken = statistics.median(seconds)
        print(f"{name:<24}{taken:>8.3f}{taken / words * 1e6:>9.2f}{taken / base:>8.2f}")

    cores = sorted(os.sched_getaffinity(0))[:2]
    print(f"\n{'cores':<24}{'texts/s':>9}{'words/s':>10}   (load of the machine: {os.getloadavg()[0]:.1f})")
    for count in range(1, len(cores) + 1):
        rate = statistics.median(host.rate(set(cores[:count])) for _ in range(args.rounds))
        print(f"{count:<24}{rate:>9.0f}{rate * words / len(texts):>10.0f}", flush=True)


def processor_time(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    with plain_errors():
        main()
