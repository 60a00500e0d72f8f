"""Measures rows per second of `spanlake extract` and of the bare Extractor, on the same rows and machine, in one run.

    python benchmarks/extraction.py [--model mini] [--rows 1200] [--rounds 3] [--precision auto] [--device auto]

The Extractor reads a list of texts in this process. The pipeline reads Parquet, extracts with one worker, and commits
units of 300 rows. The time to load the model counts for neither side, so the pipeline's time begins with its first
unit. The two sides take turns. The figures are medians. The last line gives the time of the whole command.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from arguments import plain_errors
from inference import PASSAGES
from machine import machine

from spanlake.extraction.output.ledger import Request
from spanlake.extraction.output.rows import unit_footer
from spanlake.extraction.run import pipeline
from spanlake.extraction.run.execute import execute
from spanlake.extraction.source.open import read_source
from spanlake.inference.extractor import Extractor
from spanlake.inference.settings import Settings
from spanlake.options import positive
from spanlake.storage import locate

LABELS = ["person", "organization", "location", "date", "film"]
UNIT_ROWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rows", type=positive, default=1200)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    passages = pq.read_table(PASSAGES)
    table = pa.concat_tables([passages] * -(-args.rows // passages.num_rows)).slice(0, args.rows)
    texts = table.column("text").to_pylist()

    bare, steady, whole = [], [], []
    with tempfile.TemporaryDirectory() as directory, pipeline.cluster():
        pq.write_table(table, f"{directory}/rows.parquet", row_group_size=UNIT_ROWS)
        share = pipeline.share_cluster((1, 1), args.device)
        extractor = Extractor.load(args.model, device=share.device, precision=args.precision, threads=share.threads)
        extractor.extract(texts[:UNIT_ROWS], LABELS)
        for turn in range(args.rounds):
            started = time.perf_counter()
            extractor.extract(texts, LABELS)
            bare.append(len(texts) / (time.perf_counter() - started))
            output = Path(directory) / f"out-{turn}"
            whole.append(run(Path(directory) / "rows.parquet", output, extractor, args))
            steady.append(rows_per_second(output))
    print(machine(share.threads, "ray", "torch"))
    print(f"{extractor.device}, {extractor.precision}; model {args.model}, {args.rows:,} rows, {args.rounds} rounds")
    for name, figures in (("Extractor", bare), ("pipeline", steady)):
        print(f"{name:<10}{', '.join(f'{figure:.1f}' for figure in figures)} rows/s")
    ratio = statistics.median(steady) / statistics.median(bare)
    print(
        f"Extractor {statistics.median(bare):.1f} rows/s, pipeline {statistics.median(steady):.1f} rows/s: {ratio:.0%}"
    )
    print(f"the whole command, starting and loading included: {statistics.median(whole):.1f} s")


def run(source: Path, output: Path, extractor: Extractor, args: argparse.Namespace) -> float:
    """Extracts once, and returns the seconds that it took."""
    package = extractor.package
    request = Request(
        source=read_source(str(source), ("text",)),
        output=locate(str(output)),
        text_columns=("text",),
        settings=Settings.make(LABELS),
        model_name=package.name,
        model_fingerprint=package.fingerprint,
        precision=args.precision,
        unit_rows=UNIT_ROWS,
    )
    load = partial(Extractor.load, args.model, precision=args.precision)
    started = time.perf_counter()
    execute(request, load, workers=(1, 1), device=args.device, say=lambda message: None)
    return time.perf_counter() - started


def rows_per_second(output: Path) -> float:
    """Returns rows per second, from the begin of the first unit to the commit of the last."""
    begun, ended, rows = [], [], 0
    for path in output.glob("*.parquet"):
        metadata = pq.read_metadata(path)
        footer = unit_footer(metadata)
        assert footer is not None
        ended.append(path.stat().st_mtime)
        begun.append(ended[-1] - footer["seconds"])
        rows += metadata.num_rows
    return rows / (max(ended) - min(begun))


if __name__ == "__main__":
    with plain_errors():
        main()
