"""Extracts a lake of many rows with a trivial model, and measures speed, memory, the resumption and the audit.

    python benchmarks/lake.py [--rows 1000000] [--files 50]
    python benchmarks/lake.py --rows 10000 --times 1 2 4 8 --workers 1 2
    python benchmarks/lake.py --units 1000 10000 100000
    python benchmarks/lake.py --units 10000 --rows-per-file 1
    python benchmarks/lake.py --gigabytes 5

It writes the lake and a model of random weights to a temporary directory. Then it runs the commands as a user would:
extract; extract again; audit. It kills the first extraction and all its processes with SIGKILL when a third of the
units are committed. Memory is the largest sum of the proportional set sizes (PSS) of a command's processes, of which
Ray's processes take a large part.

With --times it extracts that many times the rows instead, with each number of workers. The processor time is that of
all processes, as seen twice a second. The seconds of the run are those after Ray has started.

With --units it measures what each unit costs the driver and object storage instead, and with --gigabytes what one large
file costs (unit_costs.py).
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
from typing import NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from arguments import plain_errors
from machine import machine
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from unit_costs import measure, measure_file

from spanlake.modeling.config import ModelConfig
from spanlake.modeling.model import SpanModel
from spanlake.options import above_zero, positive
from spanlake.package import save_package

WORDS = ("ada", "alan", "babbage", "curie", "grace", "hopper", "london", "marie", "paris", "turing", "warsaw", "went")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument("--files", type=positive, default=50)
    parser.add_argument(
        "--units", type=positive, nargs="+", metavar="N", help="only plan, commit and audit N units, without Ray"
    )
    parser.add_argument("--rows-per-file", type=positive, default=1000, metavar="N", help="with --units")
    parser.add_argument(
        "--gigabytes", type=above_zero, metavar="N", help="only plan, commit and audit one file, without Ray"
    )
    parser.add_argument("--times", type=positive, nargs="+", metavar="N", help="only extract N times the rows")
    parser.add_argument("--workers", type=positive, nargs="+", default=[1], metavar="N", help="with --times")
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "ray", "pyarrow", "torch"))
    print(f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory")
    if args.units:
        measure(args.units, args.rows_per_file)
    elif args.gigabytes:
        measure_file(args.gigabytes)
    elif args.times:
        scale(args.rows, args.files, args.times, args.workers)
    else:
        stop_and_resume(args.rows, args.files)


def scale(rows: int, files: int, times: list[int], workers: list[int]) -> None:
    print("rows      workers  seconds  of the run  processor seconds  rows/s  peak MiB")
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        write_model(model)
        for factor in times:
            source = Path(directory) / f"source-{factor}"
            write_lake(source, rows * factor, files)
            for count in workers:
                output = Path(directory) / f"output-{factor}-{count}"
                options = ["--labels", "person,place", "--unit-rows", "500", "--workers", str(count), "--json"]
                seen = watch(["extract", str(source), str(output), "--model", str(model), *options])
                if seen.code:
                    print(f"{rows * factor:<9} {count:<7}  exit {seen.code}", flush=True)
                    continue
                found = json.loads(seen.printed)
                print(
                    f"{found['rows']:<9} {count:<7}  {seen.seconds:7.1f}  {found['seconds']:10.1f}  "
                    f"{seen.processor_seconds:17.1f}  {found['rows_per_second']:6.0f}  {seen.peak_mib:8.0f}",
                    flush=True,
                )


def stop_and_resume(rows: int, files: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, output, model = (Path(directory) / name for name in ("source", "output", "model"))
        write_lake(source, rows, files)
        write_model(model)
        extract = ["extract", str(source), str(output), "--labels", "person,place", "--model", str(model)]

        def a_third_is_committed() -> bool:
            plan = list(output.glob("_spanlake/manifest.json"))
            return bool(plan) and len(list(output.glob("*.parquet"))) * 3 > json.loads(plan[0].read_text())["units"]

        report("dry run", watch([*extract, "--dry-run", "--json"]))
        report("extract, killed", watch(extract, a_third_is_committed))
        report("extract again", watch([*extract, "--json"]))
        report("extract once more", watch([*extract, "--json"]))
        report("audit", watch(["audit", str(output)]))


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


class Watched(NamedTuple):
    """What a command and its processes did."""

    seconds: float
    processor_seconds: float
    peak_mib: float
    code: int
    printed: str


def watch(arguments: list[str], until: Callable[[], bool] | None = None) -> Watched:
    """Runs a command, and kills it and all its processes when `until` returns True."""
    started, peak = time.monotonic(), 0.0
    spent: dict[int, float] = {}  # by process
    with tempfile.TemporaryFile("w+") as printed:
        command = [sys.executable, "-m", "spanlake.cli", *arguments]
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            peak = max(peak, sum(map(proportional_mib, family)))
            spent |= {member.pid: seconds for member in family if (seconds := processor_seconds(member))}
            if until and until():
                for member in family:
                    member.send_signal(signal.SIGKILL)
            time.sleep(0.5)
        printed.seek(0)
        return Watched(time.monotonic() - started, sum(spent.values()), peak, process.wait(), printed.read())


def proportional_mib(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:  # the process has ended since it was listed
        return 0.0


def processor_seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:  # the process has ended since it was listed
        return 0.0


def report(name: str, seen: Watched) -> None:
    found = json.loads(seen.printed) if seen.printed.startswith("{") else {}
    facts = ("rows", "resumed_rows", "rows_per_second", "complete", "output_rows", "missing_rows", "duplicate_rows")
    shown = ", ".join(f"{fact} {found[fact]}" for fact in facts if fact in found)
    print(
        f"{name:<18} exit {seen.code:>3}  {seen.seconds:>7.1f} s  peak {seen.peak_mib:>6.0f} MiB  {shown}", flush=True
    )


if __name__ == "__main__":
    with plain_errors():
        main()
