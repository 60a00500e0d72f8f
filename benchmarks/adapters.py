"""Measures the memory of models that adapters make of one base, with and without the sharing of equal weights.

    python benchmarks/adapters.py [--model mini] [--adapters 8] [--rank 8]

The adapters have random matrices. Each side loads the base and all models in a process of its own, in float32 on the
CPU. The table has the resident memory that they took, by the layers that the adapters change.
"""

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from arguments import plain_errors
from machine import machine
from torch import nn

from spanlake.modeling.lora import Adapter
from spanlake.modeling.weights import share_weights
from spanlake.options import positive
from spanlake.package import Package, absolute_name, open_package, save_adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapters", type=positive, default=8)
    parser.add_argument("--rank", type=positive, default=8)
    args = parser.parse_args()
    print(machine(torch.get_num_threads(), "torch", "transformers"))
    base = open_package(args.model)
    layers = [name for name, layer in base.model.encoder.named_modules() if isinstance(layer, nn.Linear)]
    choices = {
        "query and value": ("query", "value"),
        "all linear layers": tuple({name.rpartition(".")[2] for name in layers}),
    }
    print(f"{args.model} and {args.adapters} models of rank {args.rank} over it; MB of resident memory")
    print(f"{'changed layers':<20}{'adapter':>9}{'base':>8}{'apart':>8}{'shared':>8}  each more, shared to apart")
    for name, targets in choices.items():
        with tempfile.TemporaryDirectory() as temporary:
            paths = [str(Path(temporary, str(i))) for i in range(args.adapters)]
            for path in paths:
                _write_adapter(Path(path), base, args.model, targets, args.rank)
            size = sum(file.stat().st_size for file in Path(paths[0]).iterdir())
            alone, apart, shared = (
                _memory(args.model, models, share) for models, share in (([], False), (paths, False), (paths, True))
            )
        ratio = (shared - alone) / (apart - alone)
        print(
            f"{name:<20}{size / 1e6:>9.1f}{alone / 1e6:>8.0f}{apart / 1e6:>8.0f}{shared / 1e6:>8.0f}{ratio:>10.2f}",
            flush=True,
        )


def _write_adapter(directory: Path, base: Package, model: str, targets: tuple[str, ...], rank: int) -> None:
    changes = {}
    for name, layer in base.model.encoder.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets:
            changes[f"encoder.{name}.lora_A"] = torch.randn(rank, layer.in_features) * 0.01
            changes[f"encoder.{name}.lora_B"] = torch.randn(layer.out_features, rank) * 0.01
    save_adapter(directory, Adapter(absolute_name(model), base.fingerprint, rank, 1.0), changes, base)


def _memory(base: str, others: list[str], share: bool) -> int:
    """Returns the bytes that the models take in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_load, base, others, share).result()


def _load(base: str, others: list[str], share: bool) -> int:
    before = psutil.Process().memory_info().rss
    first = open_package(base)
    models = [first.model]
    for other in others:
        models.append(open_package(other).model)
        if share:
            share_weights(models[-1], first.model)
    return psutil.Process().memory_info().rss - before


if __name__ == "__main__":
    with plain_errors():
        main()
