"""Processes one unit: reads its rows, extracts their entities, and commits both under the name of the unit."""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.decoding import Entity
from spanlake.extraction.output.layout import Layout, Part
from spanlake.extraction.output.ledger import SUFFIX, Ledger, Request
from spanlake.extraction.output.row_labels import RowLabels
from spanlake.extraction.output.rows import FOOTER_KEY, footer_of
from spanlake.extraction.run.entities import (
    ALL_ROWS,
    Found,
    Row,
    TextExtractor,
    find,
    find_warily,
    read_rows,
)
from spanlake.extraction.source.changes import is_deleted
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.open import SourceHandle
from spanlake.inference.settings import Settings
from spanlake.storage import Place

_GROUP_BYTES = 32 << 20  # about the size of one row group in the output
_WAITS = (5.0, 20.0, 60.0)  # seconds before each further attempt at a unit that object storage does not take


@dataclass(frozen=True)
class Job:
    """What all units of a run have in common. Ray sends it to each worker."""

    source: SourceHandle
    output: Place
    temporary: str  # a directory inside the output
    text_columns: tuple[str, ...]
    schema: pa.Schema  # of the output
    settings: Settings
    request_digest: str  # fingerprint of everything that determines the result
    model: dict[str, str]  # name, fingerprint
    layout: Layout = Layout()
    row_labels: RowLabels | None = None  # if a column has the labels of each row
    changes: bool = False  # whether the source has the changes of a table
    again: frozenset[str] = frozenset()  # the names of units that have a file, and are processed again

    @staticmethod
    def of(request: Request, ledger: Ledger, again: frozenset[str] = frozenset()) -> "Job":
        return Job(
            again=again,
            source=SourceHandle.of(request.source, request.text_columns, request.read_columns),
            output=ledger.output,
            temporary=ledger.temporary,
            text_columns=request.text_columns,
            schema=request.output_schema,
            settings=request.settings,
            row_labels=request.row_labels,
            changes=request.source.changes,
            request_digest=ledger.request_digest,
            model=ledger.manifest["model"],
            layout=request.layout,
        )


@dataclass
class UnitCounts:
    """The counts of one unit. `by_label` has every label of the settings, with 0 if none was found."""

    rows: int = 0
    failed_rows: int = 0
    tokens: int = 0  # sub-words that the model has read, including those of labels
    by_label: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def entities(self) -> int:
        return sum(self.by_label.values())

    def add_tokens(self, tokens: int) -> None:
        self.tokens += tokens


class UnitRunner:
    """Processes units of a job with one extractor, one at a time."""

    def __init__(self, job: Job, extractor: TextExtractor, traits: dict[str, str] | None = None) -> None:
        """`traits` goes into the footer of every committed unit, such as the device that computed it."""
        self._job = job
        self._extractor = extractor
        self._traits = traits or {}
        self._reader = job.source.open()

    def committed(self, unit: Unit) -> UnitCounts | None:
        """Returns the counts of a unit that is committed, from its footer; None if it has to be processed."""
        if unit.name in self._job.again:
            return None
        path = self._job.output.child(unit.name + SUFFIX)
        try:
            metadata = pq.read_metadata(path, filesystem=self._job.output.filesystem)
        except (OSError, pa.ArrowException):
            return None
        footer = footer_of(metadata, unit, self._job.request_digest)
        if footer is None:
            return None
        by_label = Counter(footer["by_label"])
        return UnitCounts(footer["rows"], footer["failed_rows"], by_label=by_label, seconds=footer["seconds"])

    def run(
        self,
        unit: Unit,
        on_stage: Callable[[str], object] = lambda stage: None,
        may_read: Callable[[int], bool] | None = None,
    ) -> UnitCounts:
        """Commits a unit. After a return, the output has the whole unit; after an exception, it has none of it.

        `on_stage` receives the current stage: reading, scoring or writing.
        If `may_read` is given, rows are processed one by one: it is called with the number of each row in the unit,
        from 0, just before that row, and with ALL_ROWS before the rows of a batch are processed together. A row for
        which it returns False is marked as one that killed the process.

        Object storage that does not take the unit is tried again, because it may be overloaded.

        Raises SourceReadError if its rows cannot be read, ShortfallError if the extractor no longer works, and OSError
        if the output cannot be written.
        """
        for wait in () if self._job.output.is_local else _WAITS:
            try:
                return self._run(unit, on_stage, may_read)
            except OSError:
                time.sleep(wait)
        return self._run(unit, on_stage, may_read)

    def _run(self, unit: Unit, on_stage: Callable[[str], object], may_read: Callable[[int], bool] | None) -> UnitCounts:
        job, started = self._job, time.monotonic()
        counts = UnitCounts(by_label=Counter(dict.fromkeys(job.settings.labels, 0)))
        places, deleted = unit.places(), job.changes and is_deleted(unit)
        name = unit.name + SUFFIX
        draft = f"{job.temporary}/{uuid.uuid4().hex}-{os.getpid()}{SUFFIX}"
        with job.output.replacing(name, draft) as path, _UnitWriter(job, path) as writer:
            on_stage("reading")
            for batch in self._reader.read(unit):
                on_stage("scoring")
                rows = read_rows(batch, job.text_columns, job.settings, job.row_labels, deleted=deleted)
                entities, errors = self._find(rows, counts, may_read)
                inside = places[counts.rows : counts.rows + batch.num_rows]
                texts = [row.texts for row in rows]
                part = Part(unit.path, inside, batch, job.text_columns, texts, entities, errors)
                _count(counts, entities, errors)
                writer.write(job.layout.rows(part, job.schema))
                on_stage("reading")
            on_stage("writing")
            counts.seconds = time.monotonic() - started
            writer.finish(self._footer(unit, counts))
        return counts

    def _find(self, rows: list[Row], counts: UnitCounts, may_read: Callable[[int], bool] | None) -> Found:
        """Finds the entities of rows. `counts` are those of the unit before these rows."""
        columns, done = self._job.text_columns, counts.rows
        if may_read is None:
            return find(self._extractor, columns, rows, counts.add_tokens)

        def may_read_row(row: int) -> bool:
            return may_read(row if row == ALL_ROWS else done + row)

        return find_warily(self._extractor, columns, rows, may_read_row, counts.add_tokens)

    def _footer(self, unit: Unit, counts: UnitCounts) -> dict[str, object]:
        source = {"path": unit.path, "digest": unit.digest, "first": unit.first, "rows": unit.rows}
        if unit.kept:
            source["span"] = unit.span
        return {
            "unit": unit.name,
            "run": self._job.request_digest,
            "source": source,
            "rows": counts.rows,
            "failed_rows": counts.failed_rows,
            "entities": counts.entities,
            "by_label": dict(counts.by_label),
            "model": self._job.model,
            "seconds": round(counts.seconds, 3),
            **self._traits,
        }


def _count(counts: UnitCounts, entities: list[list[Entity] | None], errors: list[str | None]) -> None:
    counts.rows += len(errors)
    counts.failed_rows += sum(error is not None for error in errors)
    counts.by_label.update(entity.label for found in entities if found for entity in found)


# --- writing ------------------------------------------------------------------------------------------------------


class _UnitWriter:
    """Writes a Parquet file in row groups of bounded size."""

    def __init__(self, job: Job, path: str) -> None:
        self._writer = pq.ParquetWriter(
            path, job.schema, filesystem=job.output.filesystem, compression="zstd", write_page_checksum=True
        )
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "_UnitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(waiting.nbytes for waiting in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def finish(self, footer: dict[str, object]) -> None:
        self._flush()
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(footer, ensure_ascii=False).encode()})

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []
