"""Chooses the demo's passages, examples/passages.parquet, from a corpus of Wikipedia passages.

usage: python tools/make_examples.py wikipedia_passages.jsonl.gz

The corpus is gzip JSON lines with id, title and text. The choice is the same on every run: a fixed seed draws a third
of the passages from each band of lengths. They are sorted by id.
"""

import argparse
import gzip
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20
WORD_BANDS = ((60, 100), (100, 150), (150, 251))  # from, up to but not including
PER_BAND = 100
ROWS_PER_GROUP = 100  # small, so that the demo has several units of work
SCHEMA = pa.schema([("id", pa.int64()), ("title", pa.string()), ("text", pa.string())])
OUTPUT = Path(__file__).parent.parent / "examples" / "passages.parquet"

# The demo leaves out texts that are damaged where pronunciations, formulas or markup were removed. It also leaves out
# texts on subjects that do not suit a demo.
SCARS = ("(]", "( ", " )", "()", "(;", "(,", "(--)", "&amp;")
UNFIT = re.compile(
    r"porn|nude|erotic|\bsex|rapist|\braped?\b|murder|klan\b|nazi|suicide|molest|genocide|massacre|drug", re.IGNORECASE
)


def fit(passage: dict) -> bool:
    """Returns whether the passage is undamaged and suits a demo."""
    words = passage["title"] + " " + passage["text"]
    return not any(scar in words for scar in SCARS) and not UNFIT.search(words)


def choose(passages: list[dict]) -> list[dict]:
    """Returns PER_BAND passages from each band of WORD_BANDS, in the order of their ids."""
    candidates = [passage for passage in passages if fit(passage)]
    rng = random.Random(SEED)
    chosen: list[dict] = []
    for low, high in WORD_BANDS:
        chosen += rng.sample([p for p in candidates if low <= len(p["text"].split()) < high], PER_BAND)
    return sorted(chosen, key=lambda passage: passage["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Chooses the demo's passages, examples/passages.parquet.")
    parser.add_argument("corpus", type=Path, help="gzip JSON lines with id, title and text")
    with gzip.open(parser.parse_args().corpus, "rt", encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]
    rows = [{name: passage[name] for name in SCHEMA.names} for passage in choose(passages)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), OUTPUT, row_group_size=ROWS_PER_GROUP, compression="zstd")
    print(f"{len(rows)} passages in {OUTPUT}")


if __name__ == "__main__":
    main()
