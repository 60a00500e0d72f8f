"""Measures examples per second of training steps of Spanlake and of the gliner library's trainer, in one run.

    python benchmarks/training.py DATA ENCODER [--steps 8] [--rounds 2] [--batch 8] [--width 512] [--lstm]
                                              [--threads 2]

DATA is a file of GLiNER JSON lines (plain or .gz), such as a part of Pile-NER. ENCODER is the directory of a pretrained
encoder. Both sides train the same architecture from the same encoder on the same passages with the same types. Both use
binary cross-entropy summed over all spans, AdamW, and products in bfloat16. gliner runs its own trainer, with its
collator and its shuffling. Spanlake forms its own batches of similar length. Passages that exceed the encoder's window
are left out, because gliner would cut them.

The sides take turns, `--steps` batches each. The figures are those of the median step of all rounds, by the clock and
by the processor time of all threads. The processor time is also comparable on a busy machine.

"every dropout" drops where gliner does and as often: in attention, in the encoder's layers and in the head. "head's
dropout" sets model.encoder_dropout=0. The last table shows how long each part of Spanlake's step takes.
"""

import argparse
import gzip
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import gliner
import numpy as np
import torch
import transformers
from arguments import plain_errors
from gliner.training import Trainer
from machine import machine
from transformers import TrainerCallback

from spanlake.data.batches import TokenizedExample, plan_epoch, training_batch
from spanlake.data.sampling import Sampling, SetTypes, sample_types
from spanlake.modeling.cpu import prepare_cpu_training
from spanlake.options import positive
from spanlake.training.encoders import starting_model
from spanlake.training.loss import span_loss
from spanlake.training.optimiser import adamw
from spanlake.training.recipe import ModelSection, OptimSection

MAX_WIDTH = 12  # K
DROPOUT = 0.4  # of the head
ENCODER_DROPOUT = 0.1
OPTIM = OptimSection(max_norm=1.0)  # gliner's
PROMPT = 128  # sub-words that are kept free for the prompt


@dataclass
class Passage:
    words: list[str]
    mentions: list[tuple[int, int, str]]  # first word, last word, type
    types: list[str] = field(default_factory=list)  # the types in its prompt


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    print(machine(args.threads, "gliner", "torch", "transformers"))

    sides = [
        Spanlake("spanlake, every dropout", args, ENCODER_DROPOUT),
        Spanlake("spanlake, head's dropout", args, 0.0),
    ]
    batches = sides[0].batches(read(args.data), args.steps, args.batch)
    passages = [passage for batch in batches for passage in batch]
    words = sum(len(passage.words) for passage in passages)
    asked = sum(len(passage.types) for passage in passages)
    described = f"head of width {args.width}{' with LSTM' if args.lstm else ''}"
    print(f"{Path(args.encoder).name}, {described}; {args.steps} batches of {args.batch}, ", end="")
    print(f"{words / len(passages):.0f} words and {asked / len(passages):.1f} types in each text", flush=True)
    reference = Gliner(args, passages)
    for side in (reference, *sides):
        side.round(batches[:1])  # warms up
        side.seconds.clear()
    for _ in range(args.rounds):
        for side in (reference, *sides):
            side.round(batches)

    print(f"\n{'':<26}{'s/step':>8}{'texts/s':>9}{'words/s':>9}{'ratio':>7}{'CPU s/step':>12}{'ratio':>7}")
    base = medians(reference)
    for side in (reference, *sides):
        step, used = medians(side)
        rate = args.batch / step
        print(
            f"{side.name:<26}{step:>8.2f}{rate:>9.1f}{rate * words / len(passages):>9.0f}{base[0] / step:>6.1f}x",
            end="",
        )
        print(f"{used:>12.2f}{base[1] / used:>6.1f}x")
    print("\nSeconds of the median step:")
    parts = list(sides[0].parts)
    print(f"{'':<26}" + "".join(f"{part:>14}" for part in parts))
    for side in sides:
        print(f"{side.name:<26}" + "".join(f"{statistics.median(side.parts[part]):>14.3f}" for part in parts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("encoder", type=str)
    parser.add_argument("--steps", type=positive, default=8, help="steps in a round")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--batch", type=positive, default=8, help="texts in a batch")
    parser.add_argument("--width", type=positive, default=512, help="width of word and type vectors")
    parser.add_argument("--lstm", action="store_true")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    return parser.parse_args()


def read(file: Path) -> list[Passage]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Passage(row["tokenized_text"], [(i, j, label) for i, j, label in row["ner"] if j - i < MAX_WIDTH])
        for row in rows
        if row["ner"]
    ]


def medians(side: "Gliner | Spanlake") -> tuple[float, float]:
    """Returns the seconds of the median step, by the clock and by the processor."""
    by_clock, by_processor = zip(*side.seconds, strict=True)
    return statistics.median(by_clock), statistics.median(by_processor)


class Gliner:
    """Trains with the gliner library's own trainer. Each round is a new run of it on the same model."""

    name = "gliner"

    def __init__(self, args: argparse.Namespace, passages: list[Passage]) -> None:
        self.seconds: list[tuple[float, float]] = []  # of each step, by the clock and by the processor
        self._args = args
        torch.manual_seed(1)
        config = gliner.GLiNERConfig(
            model_name=args.encoder,
            span_mode="markerV0",
            hidden_size=args.width,
            max_width=MAX_WIDTH,
            dropout=DROPOUT,
            num_rnn_layers=int(args.lstm),
        )
        self._model = gliner.GLiNER.from_config(config, backbone_from_pretrained=True)
        self._model.float()  # else an encoder stored in float16 would be trained in it, which PyTorch refuses
        self._data = [
            {
                "tokenized_text": passage.words,
                "ner": [list(mention) for mention in passage.mentions if mention[2] in passage.types],
                "ner_labels": passage.types,
            }
            for passage in passages
        ]

    def round(self, batches: list[list[Passage]]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            settings = self._model.create_training_args(
                output_dir=directory,
                learning_rate=OPTIM.encoder_lr,
                others_lr=OPTIM.head_lr,
                weight_decay=OPTIM.weight_decay,
                others_weight_decay=OPTIM.weight_decay,
                max_grad_norm=OPTIM.max_norm,
                per_device_train_batch_size=self._args.batch,
                max_steps=len(batches) + 1,  # the first step is not timed, because the data loader starts in it
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                bf16=True,
            )
            # What `train_model` does, with a clock added.
            trainer = Trainer(
                model=self._model,
                args=settings,
                train_dataset=self._data,
                data_collator=self._model._create_data_collator(),
                processing_class=self._model.data_processor.transformer_tokenizer,
                callbacks=[Clock(self.seconds)],
            )
            trainer.train()


class Clock(TrainerCallback):
    """Records the time from the end of each step to the end of the next."""

    def __init__(self, seconds: list[tuple[float, float]]) -> None:
        self._seconds = seconds
        self._last: tuple[float, float] | None = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._last is not None:
            self._seconds.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now


class Spanlake:
    def __init__(self, name: str, args: argparse.Namespace, encoder_dropout: float) -> None:
        self.name = name
        self.seconds: list[tuple[float, float]] = []  # of each step, by the clock and by the processor
        self.parts: dict[str, list[float]] = {}
        torch.manual_seed(1)
        self._prompts, self._model, _ = starting_model(
            ModelSection(
                encoder=args.encoder,
                span_head="marker_v0",
                hidden_size=args.width,
                max_width=MAX_WIDTH,
                lstm=args.lstm,
                dropout=DROPOUT,
                encoder_dropout=encoder_dropout,
            )
        )
        prepare_cpu_training(self._model)
        self._optimiser = adamw(self._model, OPTIM)

    def batches(self, passages: list[Passage], steps: int, size: int) -> list[list[Passage]]:
        """Returns batches of random passages that fit the window, and sets the types of each passage."""
        room = self._model.config.max_tokens - self._prompts.special_tokens - PROMPT
        random.Random(1).shuffle(passages)
        fitting: list[Passage] = []
        for passage in passages:
            if len(passage.words) <= self._model.config.max_words and self._tokenized(passage).tokens <= room:
                fitting.append(passage)
            if len(fitting) == steps * size:
                break
        lengths = [self._tokenized(passage).tokens for passage in fitting]
        planned = plan_epoch(lengths, 1 << 30, size, np.random.default_rng(1))
        batches = [[fitting[i] for i in chosen] for chosen in planned]
        for step, batch in enumerate(batches):
            known = sorted({label for passage in batch for *_, label in passage.mentions})
            for index, passage in enumerate(batch):
                rng = np.random.default_rng((0, 2, step, index))  # as `training_batch` seeds it
                own = [(label,) for *_, label in passage.mentions]
                passage.types = sample_types(own, known, Sampling(), rng)[0]
        return batches

    def _tokenized(self, passage: Passage) -> TokenizedExample:
        spans = tuple((first, last, (label,)) for first, last, label in passage.mentions)
        return TokenizedExample(self._prompts.words(passage.words), spans)

    def round(self, batches: list[list[Passage]]) -> None:
        self._model.train()
        for step, passages in enumerate(batches):
            processor_time = time.process_time()
            marks = [("", time.perf_counter()), *self._step(step, passages)]
            processor_time = time.process_time() - processor_time
            for (_, before), (part, after) in pairwise(marks):
                self.parts.setdefault(part, []).append(after - before)
            self.seconds.append((marks[-1][1] - marks[0][1], processor_time))

    def _step(self, step: int, passages: list[Passage]) -> list[tuple[str, float]]:
        """Takes a step, and returns its parts and the time at which each ended."""
        marks: list[tuple[str, float]] = []

        def mark(part: str) -> None:
            marks.append((part, time.perf_counter()))

        def at_encoder(_module: object, _inputs: object, output: Any) -> None:
            mark("encoder")
            output.last_hidden_state.register_hook(lambda _gradient: mark("head, back"))

        examples = [self._tokenized(passage) for passage in passages]
        batch, true = training_batch(
            examples, range(len(examples)), self._prompts, [SetTypes(Sampling())], self._model.config, seed=0, step=step
        )
        assert batch.type_counts == [len(passage.types) for passage in passages]
        mark("data")
        hook = self._model.encoder.register_forward_hook(at_encoder)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self._model(batch)
        hook.remove()
        mark("head")
        loss = span_loss(logits, true, batch.word_counts, batch.type_counts, OPTIM)
        mark("loss")
        loss.backward()
        mark("encoder, back")
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), OPTIM.max_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        mark("optimiser")
        return marks


if __name__ == "__main__":
    with plain_errors():
        main()
