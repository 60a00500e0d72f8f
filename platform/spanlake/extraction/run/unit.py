"""Processes one unit: reads its rows, extracts their entities, and commits both under the name of the unit."""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, described
from spanlake.extraction.output.layout import Layout, Part
from spanlake.extraction.output.ledger import SUFFIX, Ledger, Request
from spanlake.extraction.output.rows import FOOTER_KEY
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.open import SourceHandle
from spanlake.extraction.source.texts import read_texts
from spanlake.inference.settings import Settings
from spanlake.storage import Place

_GROUP_BYTES = 32 << 20  # about the size of one row group in the output
ALL_ROWS = -1  # instead of the number of a row: all rows that may be read, together
_DEADLY = "reading the text killed the worker, twice"
_PROBE = "Ada Lovelace wrote to Charles Babbage in London."


class TextExtractor(Protocol):
    """The part of the Extractor that a unit uses."""

    def stream(
        self, requests: Iterable[tuple[str, Settings]], on_pass: Callable[[int], None] | None = None
    ) -> Iterator[list[Entity]]: ...


@dataclass(frozen=True)
class Job:
    """What all units of a run have in common. Ray sends it to each worker."""

    source: SourceHandle
    output: Place
    temporary: str  # a directory inside the output
    text_column: str
    schema: pa.Schema  # of the output
    settings: Settings
    request_digest: str  # fingerprint of everything that determines the result
    model: dict[str, str]  # name, fingerprint
    layout: Layout = Layout()

    @staticmethod
    def of(request: Request, ledger: Ledger) -> "Job":
        return Job(
            source=SourceHandle.of(request.source, request.text_column, request.output_schema.names),
            output=ledger.output,
            temporary=ledger.temporary,
            text_column=request.text_column,
            schema=request.output_schema,
            settings=request.settings,
            request_digest=ledger.request_digest,
            model=ledger.manifest["model"],
            layout=request.layout,
        )


@dataclass
class UnitCounts:
    """The counts of one unit. `by_label` has every requested label, with 0 if none was found."""

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

        Raises SourceReadError if its rows cannot be read, ShortfallError if the extractor no longer works, and OSError
        if the output cannot be written.
        """
        job, started = self._job, time.monotonic()
        counts = UnitCounts(by_label=Counter(dict.fromkeys(job.settings.names, 0)))
        places = unit.places()
        name = unit.name + SUFFIX
        draft = f"{job.temporary}/{uuid.uuid4().hex}-{os.getpid()}{SUFFIX}"
        with job.output.replacing(name, draft) as path, _UnitWriter(job, path) as writer:
            on_stage("reading")
            for batch in self._reader.read(unit):
                on_stage("scoring")
                texts, reasons = read_texts(batch, job.text_column)
                if may_read is None:
                    entities, errors = annotate(self._extractor, job.settings, texts, counts.add_tokens)
                else:
                    entities, errors = _annotate_warily(self._extractor, job.settings, texts, counts, may_read)
                errors = [reason or error for reason, error in zip(reasons, errors, strict=True)]
                inside = places[counts.rows : counts.rows + batch.num_rows]
                part = Part(unit.path, inside, batch, texts, entities, errors)
                _count(counts, entities, errors)
                writer.write(job.layout.rows(part, job.schema))
                on_stage("reading")
            on_stage("writing")
            counts.seconds = time.monotonic() - started
            writer.finish(self._footer(unit, counts))
        return counts

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


# --- extracting ---------------------------------------------------------------------------------------------------


def annotate(
    extractor: TextExtractor,
    settings: Settings,
    texts: Sequence[str | None],
    on_pass: Callable[[int], None] | None = None,
) -> tuple[list[list[Entity] | None], list[str | None]]:
    """Returns the entities of each text, and the error of each text on which the model failed.

    A text that is None has neither. `on_pass` receives the number of sub-words of each forward pass.
    Raises ShortfallError if the extractor fails on every text, because the rows are then not at fault.
    """
    readable = [row for row, text in enumerate(texts) if text is not None]
    entities: list[list[Entity] | None] = [None] * len(texts)
    errors: list[str | None] = [None] * len(texts)
    answers = _extract(extractor, settings, [text for text in texts if text is not None], on_pass)
    if any(isinstance(answer, str) for answer in answers):
        _check_alive(extractor, settings)
    for row, answer in zip(readable, answers, strict=True):
        if isinstance(answer, str):
            errors[row] = answer
        else:
            entities[row] = answer
    return entities, errors


def _annotate_warily(
    extractor: TextExtractor,
    settings: Settings,
    texts: Sequence[str | None],
    counts: UnitCounts,
    may_read: Callable[[int], bool],
) -> tuple[list[list[Entity] | None], list[str | None]]:
    """Annotates each text by itself, and then all safe texts together.

    The last bits of a score depend on which texts share a batch. The second pass gives the same scores as `annotate`.
    `counts` are those of the unit before these rows.
    """
    entities: list[list[Entity] | None] = []
    errors: list[str | None] = []
    for row, text in enumerate(texts):
        deadly = not may_read(counts.rows + row)
        found, reasons = ([None], [_DEADLY]) if deadly else annotate(extractor, settings, [text])
        entities += found
        errors += reasons
    if may_read(ALL_ROWS):
        alive = [None if error == _DEADLY else text for text, error in zip(texts, errors, strict=True)]
        entities, reasons = annotate(extractor, settings, alive, counts.add_tokens)
        errors = [_DEADLY if error == _DEADLY else reason for error, reason in zip(errors, reasons, strict=True)]
    return entities, errors


def _extract(
    extractor: TextExtractor, settings: Settings, texts: list[str], on_pass: Callable[[int], None] | None
) -> list[list[Entity] | str]:
    """Returns the entities of each text, or the reason if the extractor fails on the text."""
    if not texts:
        return []
    try:
        return list(extractor.stream(((text, settings) for text in texts), on_pass))
    except Exception as error:  # of any kind; the other texts must not suffer from it
        if len(texts) == 1:
            return [described(error)]
    half = len(texts) // 2
    return _extract(extractor, settings, texts[:half], on_pass) + _extract(extractor, settings, texts[half:], on_pass)


def _check_alive(extractor: TextExtractor, settings: Settings) -> None:
    try:
        list(extractor.stream([(_PROBE, settings)]))
    except Exception as error:
        raise ShortfallError(f"the model no longer answers ({described(error)})") from error


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
