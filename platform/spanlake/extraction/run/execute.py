"""Runs `extract` on the pending units of an output."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanlake.ahead import map_ahead
from spanlake.errors import ShortfallError
from spanlake.extraction.output.lease import check_free, held
from spanlake.extraction.output.ledger import SUFFIX, Ledger, Request, labels_of, prepare
from spanlake.extraction.output.rows import unit_footer
from spanlake.extraction.run import pipeline
from spanlake.extraction.run.board import State
from spanlake.extraction.run.progress import RunProgress
from spanlake.extraction.run.unit import Job, UnitCounts

_READERS = 16  # of footers at a time
_NAMES_SHOWN = 100  # of files that are not read, in the summary
_NAMES_IN_WORDS = 3
_LABELS_IN_WORDS = 50  # the most frequent, if rows have labels of their own


@dataclass
class Summary:
    """The results of a run. Units that were committed before count only as `resumed_rows` and `resumed_units`."""

    output: str
    model: dict[str, str]
    source_rows: int
    units: int
    files_not_read: tuple[str, ...] = ()  # of the source
    resumed_rows: int = 0
    resumed_units: int = 0
    rows: int = 0
    failed_rows: int = 0
    by_label: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    workers: dict[str, Any] | None = None  # None if there was no pending unit
    problems: list[str] = field(default_factory=list)  # a sentence for each unit that could not be read

    def add(self, unit: UnitCounts) -> None:
        self.rows += unit.rows
        self.failed_rows += unit.failed_rows
        self.by_label.update(unit.by_label)

    @property
    def entities(self) -> int:
        return sum(self.by_label.values())

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "complete": not self.problems,
            "source_rows": self.source_rows,
            "units": self.units,
            "files_not_read": {"count": len(self.files_not_read), "names": self.files_not_read[:_NAMES_SHOWN]},
            "resumed_rows": self.resumed_rows,
            "resumed_units": self.resumed_units,
            "rows": self.rows,
            "failed_rows": self.failed_rows,
            "entities": self.entities,
            "by_label": dict(self.by_label),
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
            "workers": self.workers,
            "problems": self.problems,
            "model": self.model,
        }

    def as_line(self) -> str:
        if not self.rows and self.resumed_rows:
            return f"{self.output} was already complete with all {self.source_rows:,} rows" + self._not_read_in_words()
        labels = ", ".join(f"{label} {count:,}" for label, count in self.by_label.most_common(_LABELS_IN_WORDS))
        labels += ", ..." if len(self.by_label) > _LABELS_IN_WORDS else ""
        resumed = f", {self.resumed_rows:,} were there already" if self.resumed_rows else ""
        failed = f", {self.failed_rows:,} could not be read (column error says why)" if self.failed_rows else ""
        return (
            f"{self.rows:,} rows in {self.seconds:,.1f} s ({self.rows_per_second:,.0f} rows/s){resumed}{failed}; "
            f"{self.entities:,} entities ({labels}) in {self.output}" + self._not_read_in_words()
        )

    def _not_read_in_words(self) -> str:
        return f"; {not_read(self.files_not_read)}" if self.files_not_read else ""


def not_read(paths: Sequence[str]) -> str:
    """Returns a text with the number of files that are not read, and the first names."""
    more = ", ..." if len(paths) > _NAMES_IN_WORDS else ""
    are = "files are" if len(paths) > 1 else "file is"
    return f"{len(paths):,} {are} not read, by name or content ({', '.join(paths[:_NAMES_IN_WORDS])}{more})"


def execute(
    request: Request,
    load: pipeline.LoadExtractor,
    *,
    workers: tuple[int, int] | None,
    device: str,
    say: Callable[[str], None],
    max_error_rate: float = 1.0,
    retry_errors: bool = False,
) -> Summary:
    """Extracts the pending units of an output, and returns a summary.

    `workers` is the least and the greatest number of workers. `say` shows a message. `max_error_rate` is the share of
    the source's rows that may fail. With `retry_errors`, units with failed rows are extracted again; the old units
    stay until the new ones replace them.

    Raises UserError, before it writes anything, if the output or the cluster does not fit the request. Raises
    ShortfallError if the run cannot continue, or if too many rows fail. Committed units stay.
    """
    ledger = prepare(request)
    committed = ledger.committed()
    again = ledger.damaged() | (_with_errors(ledger, committed) if retry_errors else set())
    pending = ledger.pending(committed - again)
    summary = _begin(ledger, request.source.ignored, pending)
    if pending.num_rows:
        if summary.resumed_units:
            say(f"{summary.resumed_rows:,} of {summary.source_rows:,} rows are already in {summary.output}")
        check_free(ledger.output)
        with pipeline.cluster():
            share = pipeline.share_cluster(workers, device)
            say(f"workers: {share.describe()} x {request.model_name} on {share.device}, {share.threads} threads each")
            summary.workers = {
                "min": share.least,
                "max": share.most,
                "device": share.device,
                "threads": share.threads,
            }
            ledger.save()
            started = time.monotonic()
            with held(ledger), RunProgress(pending.num_rows, summary.source_rows, summary.resumed_rows) as progress:

                def on_unit(counts: UnitCounts, state: State) -> None:
                    summary.add(counts)
                    summary.seconds = time.monotonic() - started
                    progress.add(counts, state)
                    if summary.failed_rows > max_error_rate * summary.source_rows:
                        raise ShortfallError(
                            f"{summary.failed_rows:,} of {summary.source_rows:,} rows could not be read, and "
                            f"--max-error-rate {max_error_rate:g} does not allow more: the column error of "
                            f"{summary.output} says why; correct the source, or allow more."
                        )

                job = Job.of(request, ledger, frozenset(again))
                summary.problems = pipeline.run(job, pending, share, load, on_unit)
    if not summary.problems:
        ledger.clean()
    return summary


def _with_errors(ledger: Ledger, units: set[str]) -> set[str]:
    """Returns the units that have failed rows by their footers, or whose footers cannot be read."""

    def failed(name: str) -> str | None:
        path = ledger.output.child(f"{name}{SUFFIX}")
        try:
            footer = unit_footer(pq.read_metadata(path, filesystem=ledger.output.filesystem))
        except (OSError, pa.ArrowException):
            return name
        return name if footer is None or footer.get("failed_rows") else None

    return {name for name in map_ahead(failed, units, _READERS) if name}


def _begin(ledger: Ledger, files_not_read: tuple[str, ...], pending: pa.Table) -> Summary:
    manifest = ledger.manifest
    pending_rows = pc.sum(pending.column("rows")).as_py() or 0
    return Summary(
        output=ledger.output.uri,
        model=manifest["model"],
        source_rows=manifest["source"]["rows"],
        units=manifest["units"],
        files_not_read=files_not_read,
        resumed_rows=manifest["source"]["rows"] - pending_rows,
        resumed_units=manifest["units"] - pending.num_rows,
        by_label=Counter(dict.fromkeys(labels_of(manifest), 0)),
    )
