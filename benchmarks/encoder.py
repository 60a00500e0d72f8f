"""Measures the processor time of this package's BERT against the padded BERT of the transformers library, in one run.

    python benchmarks/encoder.py [--model mini] [--texts 120] [--rounds 5]

Both sides have the same weights and read the same batches on one thread. The texts are passages and first sentences, in
batches by length, as extraction forms them, and in batches as the texts come. The training sides compute the gradients
too, with dropout, and the transformers library then uses this package's attention. They take turns in each round, and
the figure is the median round.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from arguments import plain_errors
from machine import machine
from torch import nn
from transformers import BertConfig, BertModel

from spanlake.modeling.bert import Bert
from spanlake.modeling.cpu import prepare_cpu_training
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch
from spanlake.options import positive
from spanlake.package import Package, open_package

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
LABELS = ["person", "organization", "location", "date", "film"]
BATCH_TOKENS = 2048  # padded sub-words
DROPOUT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="a model with the encoder bert")
    parser.add_argument("--texts", type=positive, default=120)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(1, "torch", "transformers"))

    package = open_package(args.model)
    ours = package.model.encoder
    assert isinstance(ours, Bert), f"the encoder of {args.model} is not bert"
    theirs = BertModel(BertConfig(**package.config.encoder), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict())
    passages = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()[: args.texts // 2]
    texts = [part for text in passages for part in (text, text.split(". ")[0])]
    read, train = (theirs, ours), (training(theirs, package), training(ours, package))
    print(
        f"{'batches':<14}{'real':>5}  {'':<6}{'transformers':>13}{'here':>8}{'ratio':>7}  ms per 1,000 real sub-words"
    )
    for name, by_length in (("by length", True), ("as they come", False)):
        batches = batched(package, texts, by_length)
        real = sum(int(batch.attention_mask.sum()) for batch in batches)
        share = real / sum(batch.attention_mask.numel() for batch in batches)
        for use, work, sides in (("read", forward, read), ("train", forward_and_backward, train)):
            padded, packed = (1e6 * seconds / real for seconds in medians(work, sides, batches, args.rounds))
            print(f"{name:<14}{share:>5.0%}  {use:<6}{padded:>13.0f}{packed:>8.0f}{padded / packed:>6.2f}x", flush=True)


def batched(package: Package, texts: list[str], by_length: bool) -> list[Batch]:
    tokenizer = package.tokenizer
    prompt = tokenizer.prompt([tokenizer.label(label) for label in LABELS])
    rows = [tokenizer.words(text.split()[:200]) for text in texts]
    if by_length:
        rows.sort(key=lambda words: len(words.ids))
    batches, room = [], BATCH_TOKENS
    part: list[tuple] = []
    for words in rows:
        longest = max(len(words.ids), *(len(each.ids) for _, each in part), 0) + len(prompt.ids) + 2
        if part and longest * (len(part) + 1) > room:
            batches.append(tokenizer.collate(part, package.config.pad_token_id))
            part = []
        part.append((prompt, words))
    return [*batches, tokenizer.collate(part, package.config.pad_token_id)]


def training(encoder: nn.Module, package: Package) -> nn.Module:
    """Returns a copy of the encoder, prepared for training with dropout."""
    changed = copy.deepcopy(encoder)
    for module in changed.modules():
        if isinstance(module, nn.Dropout):
            module.p = DROPOUT
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = DROPOUT
    model = SpanModel(package.config, changed)
    prepare_cpu_training(model)
    return model.encoder.train()


def forward(encoder: nn.Module, batches: list[Batch]) -> None:
    with torch.inference_mode():
        for batch in batches:
            encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask)


def forward_and_backward(encoder: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        hidden = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        hidden[batch.attention_mask.bool()].square().mean().backward()
        encoder.zero_grad()


def medians(
    work: Callable[[nn.Module, list[Batch]], None], sides: tuple[nn.Module, ...], batches: list[Batch], rounds: int
) -> list[float]:
    """Returns the median seconds of processor time of each side over `rounds` rounds, after one warm-up round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.process_time()
            work(side, batches)
            if turn:
                taken.append(time.process_time() - started)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    with plain_errors():
        main()
