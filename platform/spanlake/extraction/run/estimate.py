"""Estimates the cost of a request from a sample of its rows (`extract --dry-run`). Writes nothing."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from spanlake.extraction.output.layout import Part, of_column
from spanlake.extraction.output.ledger import Request, prepare
from spanlake.extraction.output.passages import Passage
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.output.show import LENGTH, MARGIN, examples
from spanlake.extraction.run.entities import Found, Row, find, read_rows
from spanlake.extraction.source.changes import is_deleted
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.open import SourceHandle
from spanlake.inference.extractor import Extractor
from spanlake.modeling.cutting import cut_text

ROWS = 128  # about the most that are read
PLACES = 32  # the most places in the source from which they are read, evenly spread
CHARACTERS = 1 << 18  # of text, after which it stops reading

_PASSAGES = 5


@dataclass
class Sample:
    """The cost of some rows, and the pending work."""

    source_rows: int
    pending_rows: int  # rows that no earlier run has committed
    pending_units: int
    rows: int = 0
    failed_rows: int = 0
    seconds: float = 0.0  # that one worker needed for the sample
    tokens: int = 0  # sub-words of the texts
    output_bytes: int = 0  # of the sampled rows in a file
    file_bytes: int = 0  # of a file without rows
    by_label: Counter[str] = field(default_factory=Counter)
    passages: list[Passage] = field(default_factory=list)  # the first with entities

    def as_json(self, workers: int) -> dict[str, Any]:
        """Returns the sample, and the cost of the pending rows if they are like it."""
        share = self.pending_rows / self.rows if self.rows else 0.0
        return {
            "source_rows": self.source_rows,
            "pending_rows": self.pending_rows,
            "sampled_rows": self.rows,
            "sampled_seconds": round(self.seconds, 3),
            "failed_rows": round(self.failed_rows * share),
            "tokens": round(self.tokens * share),
            "tokens_per_second": round(self.tokens / self.seconds) if self.seconds else 0,
            "rows_per_second": round(self.rows / self.seconds, 1) if self.seconds else 0.0,
            "entities": round(self.by_label.total() * share),
            "by_label": {label: round(count * share) for label, count in self.by_label.items()},
            "output_bytes": round(self.output_bytes * share + self.file_bytes * self.pending_units),
            "workers": workers,
            "seconds": round(self.seconds * share / workers, 1),
        }


def sample(request: Request, extractor: Extractor) -> Sample:
    """Returns the cost of rows from all parts of the pending work, extracted as a worker would extract them.

    Raises UserError if the existing output has other values, and SourceReadError if rows cannot be read.
    """
    ledger = prepare(request)
    pending = ledger.pending(ledger.committed())
    taken = Sample(ledger.manifest["source"]["rows"], pc.sum(pending.column("rows")).as_py() or 0, pending.num_rows)
    taken.by_label.update(dict.fromkeys(request.settings.labels, 0))
    parts = list(_parts(request, _spread(pending)))
    if not parts:
        return taken
    rows = [row for part in parts for row in part.rows]
    find(extractor, request.text_columns, rows[:1])  # the first pass is slower, so it is not measured
    started = time.monotonic()
    found = find(extractor, request.text_columns, rows)
    taken.seconds = time.monotonic() - started
    _count(taken, extractor, request.text_columns, rows, found)
    table = _output(request, parts, found)
    taken.file_bytes = _written(table.slice(0, 0))
    taken.output_bytes = _written(table) - taken.file_bytes
    return taken


def _spread(plan: pa.Table) -> list[Unit]:
    """Returns the first rows of some units, evenly spread over a plan."""
    count = min(PLACES, plan.num_rows)
    chosen = plan.take(pa.array([plan.num_rows * index // count for index in range(count)], pa.int64()))
    rows = -(-ROWS // max(1, count))
    return [unit.head(rows) for unit in units_of(chosen)]


class _Part(NamedTuple):
    """Consecutive rows of a source file."""

    path: str
    places: Sequence[int]  # the number of each row in the file
    batch: pa.RecordBatch
    rows: list[Row]


def _parts(request: Request, units: list[Unit]) -> Iterator[_Part]:
    reader = SourceHandle.of(request.source, request.text_columns, request.read_columns).open()
    size = 0
    for unit in units:
        places, done, deleted = unit.places(), 0, request.source.changes and is_deleted(unit)
        for batch in reader.read(unit):
            rows = read_rows(batch, request.text_columns, request.settings, request.row_labels, deleted=deleted)
            yield _Part(unit.path, places[done : done + batch.num_rows], batch, rows)
            done += batch.num_rows
            size += sum(len(text or "") for row in rows for text in row.texts)
        if size >= CHARACTERS:
            return


def _count(
    taken: Sample, extractor: Extractor, text_columns: tuple[str, ...], rows: Sequence[Row], found: Found
) -> None:
    taken.rows = len(rows)
    taken.failed_rows = sum(error is not None for error in found.errors)
    for row, entities in zip(rows, found.entities, strict=True):
        for column, text in zip(text_columns, row.texts, strict=True):
            if entities is None or text is None:
                continue
            taken.tokens += len(cut_text(text, extractor.package.tokenizer).words.ids)
            own = of_column(entities, column)
            taken.by_label.update(entity.label for entity in own)
            if own and len(taken.passages) < _PASSAGES:
                passage = Passage(text, [entity.to_dict() for entity in own])
                taken.passages.append(passage.cropped(LENGTH, MARGIN))


def _output(request: Request, parts: list[_Part], found: Found) -> pa.Table:
    schema, first = request.output_schema, 0
    tables = []
    for path, places, batch, rows in parts:
        inside = slice(first, first + len(rows))
        texts = [row.texts for row in rows]
        part = Part(path, places, batch, request.text_columns, texts, found.entities[inside], found.errors[inside])
        tables.append(request.layout.rows(part, schema))
        first = inside.stop
    return pa.concat_tables(tables)


def _written(table: pa.Table) -> int:
    """Returns the size of a file with these rows, in bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.tell()


def draw(taken: Sample, workers: int, console: Console) -> None:
    """Prints the estimate for people."""
    found = taken.as_json(workers)
    labels = ", ".join(f"{label} {count:,}" for label, count in found["by_label"].items())
    lines = [
        f"{taken.rows:,} rows read and extracted, of {taken.source_rows:,}"
        + (f" ({taken.pending_rows:,} pending)" if taken.pending_rows < taken.source_rows else ""),
        f"speed:    {found['rows_per_second']:,} rows/s, {found['tokens_per_second']:,} sub-words/s for one worker",
        f"time:     {_duration(found['seconds'])} with {workers} worker{'s' if workers > 1 else ''} like it",
        f"text:     {found['tokens']:,} sub-words",
        f"entities: {found['entities']:,} ({labels})",
        f"output:   {_size(found['output_bytes'])}",
    ]
    if found["failed_rows"]:
        lines.append(f"errors:   {found['failed_rows']:,} rows that cannot be read")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if taken.passages:
        console.print(examples(taken.passages, list(taken.by_label)))


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"about {seconds / size:,.1f} {unit}"
    return f"about {seconds:,.0f} seconds"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"about {count:,.0f} {unit}"
        count /= 1000
    return f"about {count:,.1f} TB"
