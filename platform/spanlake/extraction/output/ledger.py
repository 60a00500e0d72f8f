"""An output directory: its request, its plan, and its committed units.

OUTPUT/<unit>.parquet                   a committed unit, unless it is in damaged.json
OUTPUT/_spanlake/manifest.json          the request; written before the first unit
OUTPUT/_spanlake/plan-<digest>.parquet  every unit; the manifest names the current plan
OUTPUT/_spanlake/damaged.json           the units whose files the last audit found damaged
OUTPUT/_spanlake/driver.json            the process at work (lease.py)
OUTPUT/_spanlake/tmp/                   unfinished files, removed when every unit is committed
"""

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

import spanlake
from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.plan import complete_plan, cut, files_of, merged_plan, plan_table, units_of
from spanlake.extraction.output.row_labels import RowLabels
from spanlake.extraction.source.choice import Choice
from spanlake.extraction.source.model import Source
from spanlake.inference.settings import Settings
from spanlake.storage import Place

FORMAT = 1
FOLDER = "_spanlake"
SUFFIX = ".parquet"

_MANIFEST = f"{FOLDER}/manifest.json"
_DAMAGED = f"{FOLDER}/damaged.json"
_TEMPORARY = f"{FOLDER}/tmp"
_SCHEMA_KEY = b"spanlake.output"  # of the output's Arrow schema, in the plan's metadata
_PACKAGES = ("torch", "transformers", "ray", "pyarrow")


@dataclass(frozen=True)
class Request:
    """One call of `extract`, with every part checked."""

    source: Source
    output: Place
    text_columns: tuple[str, ...]
    settings: Settings
    model_name: str
    model_fingerprint: str
    precision: str  # as requested, so it may be auto
    unit_rows: int
    layout: Layout = Layout()
    choice: Choice = Choice()
    row_labels: RowLabels | None = None  # if a column has the labels of each row

    @property
    def output_schema(self) -> pa.Schema:
        return self.layout.schema(self.source.schema, self.text_columns)

    @property
    def read_columns(self) -> frozenset[str]:
        """Returns the columns of the source that workers read in addition to the text columns."""
        labels = [self.row_labels.column] if self.row_labels else []
        return frozenset([*self.output_schema.names, *labels])

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the result, and facts for readers of the output."""
        decisive = {
            "format": FORMAT,
            "model": {"name": self.model_name, "fingerprint": self.model_fingerprint},
            "settings": self.settings.as_json(),
            **_text_columns_as_json(self.text_columns),
            "layout": self.layout.as_json(),
            "precision": self.precision,
            **self.choice.as_json(),
            **({"labels_column": self.row_labels.as_json()} if self.row_labels else {}),
            "schema": {column.name: str(column.type) for column in self.output_schema},
        }
        by_result = decisive | {"model": self.model_fingerprint}
        return decisive | {
            "id": uuid.uuid4().hex,  # of the output that begins with this manifest
            "run": sha256(json.dumps(by_result).encode()).hexdigest(),  # the order of labels matters
            "source": {
                "uri": self.source.uri,
                "files": len(self.source.files),
                "rows": self.source.rows,
                **({"since": self.source.since} if self.source.changes else {}),
            },
            "unit_rows": self.unit_rows,
            "versions": _versions(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def _text_columns_as_json(names: tuple[str, ...]) -> dict[str, Any]:
    return {"text_column": names[0]} if len(names) == 1 else {"text_columns": list(names)}


def _versions() -> dict[str, str]:
    return {"spanlake": spanlake.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


@dataclass(frozen=True)
class Ledger:
    """An output directory, its manifest and its plan. `temporary` is a directory that only this run uses."""

    output: Place
    manifest: dict[str, Any]
    plan: pa.Table
    temporary: str = field(default_factory=lambda: f"{_TEMPORARY}/{uuid.uuid4().hex}")

    @property
    def request_digest(self) -> str:
        """Returns the fingerprint of everything that determines the result (hex)."""
        return self.manifest["run"]

    @property
    def text_columns(self) -> tuple[str, ...]:
        return _text_columns_of(self.manifest)

    @property
    def schema(self) -> pa.Schema:
        """Returns the schema of the output's files, without metadata."""
        return pa.ipc.read_schema(pa.py_buffer(self.plan.schema.metadata[_SCHEMA_KEY]))

    def committed(self) -> set[str]:
        """Returns the names of the committed units, from one listing and the list of damaged units.

        Raises UserError if the directory cannot be read.
        """
        found = {name.removesuffix(SUFFIX) for name, _ in files_in(self.output) if name.endswith(SUFFIX)}
        return found - self.damaged()

    def damaged(self) -> set[str]:
        """Returns the names of the units whose files the last audit found damaged.

        Raises UserError if the record of them cannot be read.
        """
        try:
            content = self.output.read(_DAMAGED)
            return set(json.loads(content)["units"]) if content is not None else set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.output.child(_DAMAGED)} cannot be read ({one_line(error)}): "
                "delete it, and give `spanlake audit` again."
            ) from error

    def note_damaged(self, units: Iterable[str]) -> None:
        """Records the units whose files an audit found damaged, in place of the earlier record. They are not committed.

        Raises UserError if the directory cannot be written to.
        """
        names = sorted(units)
        try:
            if names or self.output.kind(_DAMAGED) == fs.FileType.File:
                self.output.write(_DAMAGED, json.dumps({"units": names}, ensure_ascii=False).encode())
        except OSError as error:
            raise UserError(f"{self.output.uri} cannot be written to ({one_line(error)}).") from error

    def pending(self, committed: set[str]) -> pa.Table:
        """Returns the part of the plan that is not committed."""
        return self.plan.filter(pa.array([unit.name not in committed for unit in units_of(self.plan)], pa.bool_()))

    def save(self) -> None:
        """Writes the directory of this ledger, with the manifest last and atomically. A second call changes nothing.

        Raises UserError if the directory cannot be written to.
        """
        try:
            self.output.filesystem.create_dir(self.output.child(self.temporary), recursive=True)
            plan = self.manifest["plan"]
            with self.output.replacing(f"{FOLDER}/{plan}", f"{self.temporary}/{plan}") as path:
                pq.write_table(self.plan, path, filesystem=self.output.filesystem, compression="zstd")
            manifest = json.dumps(self.manifest, indent=2, ensure_ascii=False).encode()
            self.output.write(_MANIFEST, manifest, f"{self.temporary}/manifest.json")
        except OSError as error:
            raise UserError(f"{self.output.uri} cannot be written to ({one_line(error)}).") from error

    def clean(self) -> None:
        """Removes the unfinished files of this and earlier runs. Call it when every unit is committed.

        Raises ShortfallError if they cannot be removed.
        """
        try:
            self.output.delete(_DAMAGED)
            self.output.filesystem.delete_dir_contents(self.output.child(_TEMPORARY), missing_dir_ok=True)
        except OSError as error:
            raise ShortfallError(
                f"every unit is committed, but {self.output.child(_TEMPORARY)} cannot be emptied ({one_line(error)}): "
                "make it writable and give the same command again."
            ) from error


def _text_columns_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    return tuple(manifest["text_columns"]) if "text_columns" in manifest else (manifest["text_column"],)


def files_in(output: Place) -> list[tuple[str, fs.FileInfo]]:
    """Returns the names and descriptions of everything in an output directory but its own folder, sorted by name.

    Raises UserError if the directory cannot be listed.
    """
    try:
        found = output.list(recursive=False)
    except OSError as error:
        raise UserError(f"{output.uri} cannot be listed ({one_line(error)}).") from error
    return sorted((info.base_name, info) for info in found if info.base_name != FOLDER)


def read_ledger(output: Place) -> Ledger:
    """Returns the ledger of an output directory.

    Raises UserError if the directory has no ledger, or one that this version cannot read.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise UserError(f"{output.uri} is not an output of `spanlake extract`: it has no {_MANIFEST}.")
    return Ledger(output, manifest, _read_plan(output, manifest))


def prepare(request: Request) -> Ledger:
    """Returns the ledger of a request: a new one, or that of the existing output if its request is the same.

    Writes nothing. The plan includes source files that were added since; existing units keep their names.
    Raises UserError that names the difference, the change in the source, or the other content of the directory.
    """
    output, asked = request.output, request.manifest()
    check_apart(request.source, output)
    recorded = read_manifest(output)
    if recorded is None:
        check_empty(output, "extract")
        chosen = request.choice.rows(request.source, request.source.files, request.text_columns, taken=0)
        first = plan_table(unit for file in chosen for unit in cut(file, request.unit_rows))
        if not first.num_rows:  # a unit without rows tells readers the columns of the output
            first = plan_table(file.whole().head(0) for file in request.source.files[:1])
        plan = _with_schema(first, request.output_schema)
        return Ledger(output, _with_facts(asked, plan), plan)
    _check_same(output, recorded, asked)
    plan = _read_plan(output, recorded)
    known = _check_unchanged(output, plan, request.source)
    added = [file for file in request.source.files if file.path not in known]
    chosen = request.choice.rows(request.source, added, request.text_columns, taken=_rows(plan))
    new = plan_table(unit for file in chosen for unit in cut(file, recorded["unit_rows"]))
    if not new.num_rows:
        return Ledger(output, recorded, plan)
    plan = _with_schema(merged_plan(plan, new), request.output_schema)
    return Ledger(output, _with_facts(recorded | {"source": asked["source"]}, plan), plan)


def discard(output: Place) -> None:
    """Deletes the output in a directory, if there is one. After an interruption, it can be called again.

    Raises UserError, before it deletes anything, if the directory has other content too.
    """
    manifest = read_manifest(output)
    if manifest is None:
        return
    units = {f"{unit.name}{SUFFIX}" for unit in units_of(_read_plan(output, manifest))}
    found = files_in(output)
    others = [name for name, _ in found if name not in units]
    if others:
        raise UserError(f"{output.uri} holds {others[0]}, which is not part of the output: move it away first.")
    try:
        for _, info in found:
            output.filesystem.delete_file(info.path)
        output.filesystem.delete_file(output.child(_MANIFEST))  # without the manifest, the rest is not an output
        output.filesystem.delete_dir(output.child(FOLDER))
    except OSError as error:
        raise UserError(f"{output.uri} cannot be deleted ({one_line(error)}).") from error


def _with_schema(plan: pa.Table, output: pa.Schema) -> pa.Table:
    return plan.replace_schema_metadata({_SCHEMA_KEY: output.remove_metadata().serialize().to_pybytes()})


def _with_facts(manifest: dict[str, Any], plan: pa.Table) -> dict[str, Any]:
    digest = sha256()
    for unit in units_of(plan):
        digest.update(unit.name.encode())
    source = manifest["source"] | {"rows": _rows(plan)}
    return manifest | {"source": source, "units": plan.num_rows, "plan": f"plan-{digest.hexdigest()[:16]}.parquet"}


def _rows(plan: pa.Table) -> int:
    return pc.sum(plan.column("rows")).as_py() or 0


def labels_of(manifest: dict[str, Any]) -> list[str]:
    """Returns the labels that an entity of the output can have: those of the model, then the others of the rules."""
    settings = manifest["settings"]
    return list(settings["rules"]["labels"] if "rules" in settings else settings["labels"])


# --- reading ------------------------------------------------------------------------------------------------------


def read_manifest(output: Place) -> dict[str, Any] | None:
    """Returns the manifest of an output directory; None if there is no manifest.

    Raises UserError for a manifest of another command, or of a version that this one cannot read.
    """
    manifest = manifest_in(output)
    if manifest is None:
        return None
    if is_of_another_command(manifest):
        raise UserError(
            f"{output.uri} is an output of another command, not of `spanlake extract`: choose another directory."
        )
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise UserError(
            f"{output.uri} has output format {found!r} and this version reads {FORMAT}: use the version that made it."
        )
    return manifest


def is_of_another_command(manifest: dict[str, Any] | None) -> bool:
    """Returns whether a manifest is that of another command than `extract`, which numbers its formats."""
    return manifest is not None and isinstance(manifest.get("format"), str)


def manifest_in(output: Place) -> dict[str, Any] | None:
    """Returns the manifest in a directory, of whatever command; {} for one that is no JSON object; None without one.

    Raises UserError if it cannot be read.
    """
    try:
        content = output.read(_MANIFEST)
        manifest = None if content is None else json.loads(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{output.child(_MANIFEST)} cannot be read ({one_line(error)}); choose another output directory."
        ) from error
    return manifest if content is None or isinstance(manifest, dict) else {}


def _read_plan(output: Place, manifest: dict[str, Any]) -> pa.Table:
    path = output.child(f"{FOLDER}/{manifest['plan']}")
    try:
        plan = pq.read_table(path, filesystem=output.filesystem)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); choose another output directory.") from error
    if _SCHEMA_KEY not in (plan.schema.metadata or {}):
        raise UserError(f"{path} is not the plan that was written; choose another output directory.")
    return complete_plan(plan)


# --- what must be the same ----------------------------------------------------------------------------------------


def check_apart(source: Source, output: Place) -> None:
    """Raises UserError if the output lies in the source."""
    inside = f"{output.path.rstrip('/')}/".startswith(f"{source.root.path.rstrip('/')}/")
    if source.deep and inside and source.root.filesystem == output.filesystem:
        raise UserError(f"The output {output.uri} lies in the source {source.uri}: choose a directory outside it.")


def check_empty(output: Place, command: str) -> None:
    """Raises UserError if a directory has content; `command` has not written it."""
    try:
        kind = output.kind()
        others = [name for name, _ in files_in(output)] if kind == fs.FileType.Directory else []
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{output.uri} cannot be reached ({one_line(error)}).") from error
    if kind == fs.FileType.File:
        raise UserError(f"{output.uri} is a file, and the output is a directory: choose another name.")
    if others:
        raise UserError(
            f"{output.uri} is not empty (it holds {others[0]}) and not an output of `spanlake {command}`: "
            "choose a new or empty directory."
        )


def _check_same(output: Place, recorded: dict[str, Any], asked: dict[str, Any]) -> None:
    if recorded["run"] == asked["run"]:
        return
    old, new = _named_values(recorded), _named_values(asked)
    if recorded["model"]["fingerprint"] == asked["model"]["fingerprint"]:
        new["model"] = old["model"]  # the same model under another name
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    differences = "; ".join(
        f"{name} {old.get(name, 'unset')} in the output, {new.get(name, 'unset')} requested" for name in names
    )
    raise UserError(
        f"{output.uri} was extracted with other values ({differences}): "
        "use the same values, choose another output directory, or give --overwrite."
    )


def _named_values(manifest: dict[str, Any]) -> dict[str, str]:
    """Returns everything that determines the result, under the names that people use."""
    settings = manifest["settings"]
    thresholds = settings["thresholds"]
    values = {
        "model": f"{manifest['model']['name']} ({manifest['model']['fingerprint'][:12]})",
        "labels": ", ".join(
            name if name == prompt else f"{name} ({prompt})" for name, prompt in settings["labels"].items()
        )
        or "none",
        "labels column": json.dumps(manifest["labels_column"]) if "labels_column" in manifest else "none",
        "threshold": str(min(thresholds.values())) if len(set(thresholds.values())) == 1 else json.dumps(thresholds),
        "nested": str(settings["nested"]).lower(),
        "multi-label": str(settings["multi_label"]).lower(),
        "join-adjacent": str(settings.get("join", False)).lower(),
        "rules with digest": settings["rules"]["digest"][:16] if "rules" in settings else "none",
        "text column": ", ".join(_text_columns_of(manifest)),
        **_layout_values(manifest["layout"]),
        "precision": manifest["precision"],
        "where": manifest.get("where", "none"),
        "limit": str(manifest.get("limit", "none")),
    }
    return values | {f"column {name}": kind for name, kind in manifest["schema"].items()}


def _layout_values(layout: dict[str, Any]) -> dict[str, str]:
    redaction = layout["redaction"] or {"style": "none", "key_check": None}
    return {
        "layout": layout["kind"],
        "key": ", ".join(layout["keys"]) or "none",
        "columns": ", ".join(layout.get("columns", ["all"])),
        "redact": redaction["style"],
        "redaction key with digest": redaction["key_check"] or "none",
        "surrogates": json.dumps(redaction.get("surrogates", "none")),
        "vault": str(redaction.get("vault", False)).lower(),
        "drop-text": str(layout["drop_text"]).lower(),
    }


def _check_unchanged(output: Place, plan: pa.Table, source: Source) -> set[str]:
    """Returns the paths in the plan.

    Raises UserError if a file of the plan has changed in the source, or is not there.
    """
    current = {file.path: file for file in source.files}
    known = set()
    for first, rows in files_of(plan):
        known.add(first.path)
        file = current.get(first.path)
        if file is None:
            raise UserError(
                f"{first.path} is no longer in {source.uri}, and {output.uri} was planned with it: "
                "put it back, or choose another output directory."
            )
        if file.digest != first.digest:
            raise UserError(
                f"{first.path} has changed since {output.uri} was planned (then {rows:,} rows in {first.size:,} bytes, "
                f"now {file.rows:,} rows in {file.size:,} bytes): put it back, or choose another output directory."
            )
    return known
