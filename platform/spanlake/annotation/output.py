"""An output directory of `annotate`. A unit is some rows of a source file, and is committed by one file.

OUTPUT/<unit>.parquet            its annotated rows, in the training format; no other record says that it is committed
OUTPUT/_dead/<unit>.parquet      its rows that could not be annotated, each with its reason; written before
OUTPUT/_spanlake/                manifest.json, the plan, driver.json and tmp/, as of `extract`; spent.json
OUTPUT/_spanlake/part/<unit>.json   rows of a unit that a run did not finish
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.annotation.prompt import QUESTION_VERSION
from spanlake.data.prepared import SCHEMA
from spanlake.errors import UserError, one_line
from spanlake.extraction.output.ledger import FOLDER, SUFFIX, Ledger, check_apart, check_empty, manifest_in
from spanlake.extraction.output.plan import cut, plan_table, units_of
from spanlake.extraction.source.choice import Choice
from spanlake.extraction.source.model import Source, Unit
from spanlake.storage import Place

DEAD = "_dead"
_PART = f"{FOLDER}/part"
_FORMAT = "annotation 1"
_ROWS = pa.schema(
    [*SCHEMA, ("row", pa.int64()), ("dropped", pa.map_(pa.string(), pa.int32()))]  # row: its number in the source file
)
_DEAD_ROWS = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("answer", pa.string()),
    ]
)


@dataclass(frozen=True)
class Request:
    """One call of `annotate`, with every part checked."""

    source: Source
    output: Place
    text_column: str
    model: str
    endpoint: str  # its address, for readers of the output: the same model may have another address
    unit_rows: int
    choice: Choice = Choice()

    def manifest(self) -> dict[str, Any]:
        decisive = {
            "format": _FORMAT,
            "model": self.model,
            "question": QUESTION_VERSION,
            "text_column": self.text_column,
            **self.choice.as_json(),
        }
        return decisive | {
            "id": uuid.uuid4().hex,
            "run": sha256(json.dumps(decisive).encode()).hexdigest(),
            "endpoint": self.endpoint,
            "unit_rows": self.unit_rows,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


@dataclass
class Row:
    """What became of a row. It is annotated, or dead for the reason `error`."""

    row: int
    text: str | None
    mentions: list[dict[str, Any]] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    error: str | None = None
    answer: str | None = None  # of a dead row
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class Counts:
    """What an output holds. `types` counts mentions, `dropped` and `reasons` mentions and rows by what was wrong."""

    rows: int = 0
    dead: int = 0
    mentions: int = 0
    types: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


def prepare(request: Request) -> Ledger:
    """Returns the ledger of a request: a new one, or that of the existing output if its request is the same.

    Writes nothing. Raises UserError that names the difference, the change in the source, or the other content.
    """
    output, asked = request.output, request.manifest()
    check_apart(request.source, output)
    recorded = read_manifest(output)
    if recorded is None:
        check_empty(output, "annotate")
    else:
        _check_same(output, recorded, asked)
    manifest = recorded or asked
    chosen = request.choice.rows(request.source, request.source.files, (request.text_column,), taken=0)
    plan = plan_table(unit for file in chosen for unit in cut(file, manifest["unit_rows"]) if unit.rows)
    names = [unit.name for unit in units_of(plan)]
    digest = sha256("".join(names).encode()).hexdigest()
    facts = {"plan": f"plan-{digest[:16]}.parquet", "units": plan.num_rows, "source": {"uri": request.source.uri}}
    ledger = Ledger(output, manifest | facts, plan)
    strangers = ledger.committed() - set(names)
    if strangers:
        raise UserError(
            f"{output.uri} holds {min(strangers)}{SUFFIX}, which {request.source.uri} does not have: the source has "
            "changed, so put it back, or choose another output directory."
        )
    return ledger


def pending(ledger: Ledger, *, retry_dead: bool) -> list[Unit]:
    """Returns the units to do: those that are not committed, and with `retry_dead` those that have dead rows."""
    committed = ledger.committed()
    if retry_dead:
        dead = ledger.output.inside(DEAD).list(recursive=False)
        committed -= {info.base_name.removesuffix(SUFFIX) for info in dead}
    return [unit for unit in units_of(ledger.plan) if unit.name not in committed]


def commit(ledger: Ledger, unit: Unit, rows: Sequence[Row]) -> None:
    """Writes all rows of a unit to two files.

    The file of the annotated rows comes last, because it commits the unit. If the unit is committed, its dead rows are
    retried: then that file comes first, so that a row is in it before it leaves the other file.
    """
    if ledger.output.kind(unit.name + SUFFIX) == fs.FileType.File:
        _write_annotated(ledger, unit, rows)
        _write_dead(ledger, unit, rows)
    else:
        _write_dead(ledger, unit, rows)
        _write_annotated(ledger, unit, rows)
    ledger.output.delete(f"{_PART}/{unit.name}.json")


def _write_annotated(ledger: Ledger, unit: Unit, rows: Sequence[Row]) -> None:
    good = [
        asdict(row) | {"source": unit.path, "dropped": list(row.dropped.items())} for row in rows if row.error is None
    ]
    _write(ledger, unit.name + SUFFIX, _ROWS, good)


def _write_dead(ledger: Ledger, unit: Unit, rows: Sequence[Row]) -> None:
    name = f"{DEAD}/{unit.name}{SUFFIX}"
    dead = [asdict(row) | {"source": unit.path} for row in rows if row.error is not None]
    if dead:
        ledger.output.filesystem.create_dir(ledger.output.child(DEAD))
        _write(ledger, name, _DEAD_ROWS, dead)
    else:
        ledger.output.delete(name)


def save_part(ledger: Ledger, unit: Unit, rows: Sequence[Row]) -> None:
    """Keeps the finished rows of a unit that the run leaves unfinished."""
    ledger.output.filesystem.create_dir(ledger.output.child(_PART))
    content = json.dumps([asdict(row) for row in rows]).encode()
    ledger.output.write(f"{_PART}/{unit.name}.json", content, f"{ledger.temporary}/part.json")


def finished_rows(ledger: Ledger, unit: Unit) -> dict[int, Row]:
    """Returns the annotated rows of a unit by their numbers: of the part that was kept, or of its committed file."""
    part = ledger.output.read(f"{_PART}/{unit.name}.json")
    if part is not None:
        return {row["row"]: Row(**row) for row in json.loads(part)}
    if ledger.output.kind(unit.name + SUFFIX) != fs.FileType.File:
        return {}
    table = _read(ledger.output, unit.name + SUFFIX)
    found = table.select(["row", "text", "mentions", "negatives", "dropped"]).to_pylist()
    return {row["row"]: Row(**row | {"dropped": dict(row["dropped"])}) for row in found}


def counts(ledger: Ledger) -> Counts:
    """Returns what the committed units of an output hold."""
    total = Counts()
    committed = ledger.committed()
    for unit in units_of(ledger.plan):
        if unit.name not in committed:
            continue
        table = _read(ledger.output, unit.name + SUFFIX)
        total.rows += unit.rows
        for dropped in table.column("dropped").to_pylist():
            total.dropped.update(dict(dropped))
        for mentions in table.column("mentions").to_pylist():
            total.mentions += len(mentions)
            total.types.update(label for mention in mentions for label in mention["types"])
        if ledger.output.kind(f"{DEAD}/{unit.name}{SUFFIX}") == fs.FileType.File:
            annotated = {*table.column("row").to_pylist()}
            dead = _read(ledger.output, f"{DEAD}/{unit.name}{SUFFIX}").select(["row", "error"]).to_pylist()
            reasons = [row["error"].partition(":")[0] for row in dead if row["row"] not in annotated]
            total.dead += len(reasons)
            total.reasons.update(reasons)
    return total


def _read(output: Place, name: str) -> pa.Table:
    try:
        return pq.read_table(output.child(name), filesystem=output.filesystem)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{output.child(name)} cannot be read ({one_line(error)}); delete it and run again.") from error


def _write(ledger: Ledger, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in rows], schema)
    with ledger.output.replacing(name, f"{ledger.temporary}/{uuid.uuid4().hex}{SUFFIX}") as path:
        pq.write_table(table, path, filesystem=ledger.output.filesystem, compression="zstd")


def read_manifest(output: Place) -> dict[str, Any] | None:
    """Returns the manifest of an output; None if there is none. Raises UserError for one of another command."""
    manifest = manifest_in(output)
    if manifest is not None and manifest.get("format") != _FORMAT:
        raise UserError(
            f"{output.uri} is an output of another command or version, not of this `spanlake annotate`: choose another "
            "output directory."
        )
    return manifest


def _check_same(output: Place, recorded: dict[str, Any], asked: dict[str, Any]) -> None:
    if recorded["run"] == asked["run"]:
        return
    names = ("model", "text_column", "where", "limit", "question")
    different = "; ".join(
        f"{name} {recorded.get(name, 'none')} in the output, {asked.get(name, 'none')} requested"
        for name in names
        if recorded.get(name) != asked.get(name)
    )
    raise UserError(
        f"{output.uri} was annotated with other values ({different}): use the same values, or choose another output "
        "directory."
    )
