"""Extracts a lake of many rows with a trivial model, and measures speed, memory, the resumption and the audit.

    python benchmarks/lake.py [--rows 1000000] [--files 50]
    python benchmarks/lake.py --units 1000 10000 100000

It writes the lake and a model of random weights to a temporary directory. Then it runs the commands as a user would:
extract; extract again; audit. It kills the first extraction and all its processes with SIGKILL when a third of the
units are committed. Memory is the largest sum of the proportional set sizes (PSS) of a command's processes, of which
Ray's processes take a large part.

With --units it measures what each unit costs the driver and object storage instead (unit_costs.py).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from unit_costs import measure

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.model import SpanModel
from spanlake.package import save_package

WORDS = ("ada", "alan", "babbage", "curie", "grace", "hopper", "london", "marie", "paris", "turing", "warsaw", "went")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument(
        "--units", type=int, nargs="+", metavar="N", help="only plan, commit and audit N units, without Ray"
    )
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "ray", "pyarrow", "torch"))
    print(f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory")
    if args.units:
        measure(args.units)
        return
    with tempfile.TemporaryDirectory() as directory:
        source, output, model = (Path(directory) / name for name in ("source", "output", "model"))
        write_lake(source, args.rows, args.files)
        write_model(model)
        extract = ["extract", str(source), str(output), "--labels", "person,place", "--model", str(model)]

        def a_third_is_committed() -> bool:
            plan = list(output.glob("_spanlake/manifest.json"))
            return bool(plan) and len(list(output.glob("*.parquet"))) * 3 > json.loads(plan[0].read_text())["units"]

        report("dry run", *watch([*extract, "--dry-run", "--json"]))
        report("extract, killed", *watch(extract, a_third_is_committed))
        report("extract again", *watch([*extract, "--json"]))
        report("extract once more", *watch([*extract, "--json"]))
        report("audit", *watch(["audit", str(output)]))


def write_lake(directory: Path, rows: int, files: int) -> None:
    directory.mkdir()
    for file in range(files):
        ids = range(rows * file // files, rows * (file + 1) // files)
        texts = [
            f"Row {row}: {WORDS[row % 7].title()} {WORDS[row % 11].title()} went to {WORDS[row % 12].title()}"
            for row in ids
        ]
        pq.write_table(pa.table({"id": ids, "text": texts}), directory / f"part-{file:05d}.parquet")


def write_model(directory: Path) -> None:
    """Writes a package whose encoder has one layer of width 32 with random weights."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[ENT]",
        "[END]",
        *characters,
        *(f"##{c}" for c in characters),
        *WORDS,
    ]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(tokens[:6])
    encoder = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(1)
    config = ModelConfig(
        encoder=encoder,
        hidden_size=32,
        span_head="marker_v0",
        entity_token="[ENT]",
        separator_token="[END]",
        entity_token_id=tokenizer.token_to_id("[ENT]") or 0,
        max_width=4,
    )
    save_package(directory, SpanModel(config).eval(), tokenizer, name="trivial", metadata={}, card="Random weights.\n")


def watch(arguments: list[str], until: Callable[[], bool] | None = None) -> tuple[float, float, int, str]:
    """Runs a command, and kills it and all its processes when `until` returns True.

    Returns the seconds, the peak memory in MiB, the exit code and what the command printed.
    """
    started, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as printed:
        command = [sys.executable, "-m", "spanlake.cli", *arguments]
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            peak = max(peak, sum(map(proportional_mib, family)))
            if until and until():
                for member in family:
                    member.send_signal(signal.SIGKILL)
            time.sleep(0.5)
        printed.seek(0)
        return time.monotonic() - started, peak, process.wait(), printed.read()


def proportional_mib(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:  # the process has ended since it was listed
        return 0.0


def report(name: str, seconds: float, peak: float, code: int, printed: str) -> None:
    found = json.loads(printed) if printed.startswith("{") else {}
    facts = ("rows", "resumed_rows", "rows_per_second", "complete", "output_rows", "missing_rows", "duplicate_rows")
    shown = ", ".join(f"{fact} {found[fact]}" for fact in facts if fact in found)
    print(f"{name:<18} exit {code:>3}  {seconds:>7.1f} s  peak {peak:>6.0f} MiB  {shown}", flush=True)


if __name__ == "__main__":
    main()
