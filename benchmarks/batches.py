"""Measures how many examples per second the host makes into training batches, beside `Tokenizer.encode_batch` alone.

    python benchmarks/batches.py RECIPE [section.key=value …] [--rounds 3]

It reads one pool of the recipe's data, from Parquet to words and sub-words, and builds the batches of that pool, as a
run does: types are drawn anew, prompts are laid out, and the places of true spans are listed. The figures are examples
per second of processor time in one thread, as medians over the rounds. The caches of words and labels are full.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from arguments import plain_errors
from machine import machine

from spanlake.data.batches import training_batch
from spanlake.data.stream import PreparedSet
from spanlake.options import positive
from spanlake.storage import locate
from spanlake.training.data import recipe_data
from spanlake.training.encoders import starting_model
from spanlake.training.recipe import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="section.key=value")
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    recipe = read_recipe(args.recipe, args.changes)
    with tempfile.TemporaryDirectory() as cache:
        data = recipe_data(recipe, locate(cache))
        tokenizer, model, _ = starting_model(recipe.model)
        stream = data.stream(recipe, tokenizer, model.config)
        plan = stream.plans(0)[0]
        pool = stream.load(plan)
        batches = []
        for batch in stream.batches(load=lambda plans: (pool for _ in plans)):
            if batch.position.pool != plan.number or batch.position.epoch != plan.epoch:
                break
            batches.append(batch)
        texts = [text for number, group, _ in plan.pieces for text in texts_of(data.sets[number], group)]

        def build() -> None:
            for step, batch in enumerate(batches, 1):
                training_batch(
                    batch.examples,
                    range(len(batch.examples)),
                    tokenizer,
                    data.set_types,
                    model.config,
                    seed=recipe.seed,
                    step=step,
                    frequencies=data.frequencies,
                )

        build()  # fills the cache of labels
        print(machine(1, "numpy", "tokenizers", "pyarrow"))
        print(f"{recipe.name}: {len(pool)} examples, {len(batches)} batches; median of {args.rounds} rounds\n")
        sides: dict[str, tuple[Callable[[], object], int]] = {
            "encode_batch alone": (lambda: tokenizer.backend.encode_batch(texts), len(texts)),
            "reading and cutting": (lambda: stream.load(plan), len(pool)),
            "batches": (build, sum(len(batch.examples) for batch in batches)),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, (work, _) in sides.items():
                began = time.process_time()
                work()
                taken[name].append(time.process_time() - began)
        each = {name: statistics.median(taken[name]) / count for name, (_, count) in sides.items()}
        each["from Parquet to batches"] = each["reading and cutting"] + each["batches"]
        print(f"{'':<26}{'us/example':>12}{'examples/s':>12}")
        for name, seconds in each.items():
            print(f"{name:<26}{seconds * 1e6:>12.0f}{1 / seconds:>12.0f}")


def texts_of(prepared: PreparedSet, group: int) -> list[str]:
    file, index, _ = prepared.groups[group]
    with pq.ParquetFile(prepared.place.child(file), filesystem=prepared.place.filesystem) as opened:
        return opened.read_row_group(index, columns=["text"]).column("text").to_pylist()


if __name__ == "__main__":
    with plain_errors():
        main()
