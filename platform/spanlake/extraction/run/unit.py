"""One unit of work: read its rows, extract, and commit them with what was found, under the unit's own name."""

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

_GROUP_BYTES = 32 << 20  # of one row group of the output, about
ALL_ROWS = -1  # in place of a row's number: those that may be read, together
_DEADLY = "reading the text killed the worker, twice"
_PROBE = "Ada Lovelace wrote to Charles Babbage in London."


class TextExtractor(Protocol):
    """What a unit needs of the Extractor."""

    def stream(
        self, requests: Iterable[tuple[str, Settings]], on_pass: Callable[[int], None] | None = None
    ) -> Iterator[list[Entity]]: ...


@dataclass(frozen=True)
class Job:
    """What every unit of one run shares. It is sent to each worker."""

    source: SourceHandle
    output: Place
    temporary: str  # a directory inside the output
    text_column: str
    schema: pa.Schema  # of the output
    settings: Settings
    request_digest: str  # fingerprint of all that decides the result
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
    """What one unit holds. `by_label` has every label that was asked for, also those not found."""

    rows: int = 0
    failed_rows: int = 0
    tokens: int = 0  # sub-words that the model has read, those of labels too
    by_label: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def entities(self) -> int:
        return sum(self.by_label.values())

    def add_tokens(self, tokens: int) -> None:
        self.tokens += tokens


class UnitRunner:
    """Does units of a job with one extractor, one at a time."""

    def __init__(self, job: Job, extractor: TextExtractor, traits: dict[str, str] | None = None) -> None:
        """`traits` goes into every committed unit's footer: the device it was computed on, say."""
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
        """Commit a unit: it is in the output whole when this returns, and not at all if this raises.

        `on_stage` is told what is being done: reading, scoring or writing.
        `may_read` is asked of each row of the unit by number, from 0, just before it is read by itself, and of ALL_ROWS
        before the rows of a batch are read together. Rows that may not be read are marked as having killed the process.

        Raises SourceReadError where its rows cannot be read; ShortfallError where the extractor no longer works;
        OSError where the output cannot be written.
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
    """Returns the entities of each text, and why a text has none: the model failed on it. None has neither.

    `on_pass` is told how many sub-words each forward pass has read.
    Raises ShortfallError where the extractor fails on any text, so that no row is blamed for it.
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
    """Annotates each text by itself, then those that are safe together.

    The last bits of a score depend on what is read together, so the second reading gives the scores that `annotate`
    gives. `counts` are those of the unit before these rows.
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
    """Entities of each text; for a text that makes the extractor raise, the reason instead."""
    if not texts:
        return []
    try:
        return list(extractor.stream(((text, settings) for text in texts), on_pass))
    except Exception as error:  # whatever a text can provoke: the others must not pay for it
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
    """A Parquet file in the making, in row groups of bounded size."""

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
