"""The layouts of an output: the rows of the source with their entities, or one row for each entity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.source.texts import Texts
from spanlake.redaction import Redaction

ENTITY = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("score", pa.float32()),
    ]
)
_COLUMN = pa.field("column", pa.string())  # the text column of an entity, if there are several
_SOURCE = pa.field("source", pa.string())  # what has found an entity: "model" or "rule"
_VAULT_COLUMN = "vault"  # what the redaction has replaced, sealed
_REDACTED_COLUMN = "redacted_text"  # if there is one text column
SOURCE_FILE, SOURCE_ROW = "source_file", "source_row"  # of a mention: its place in the source


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnEntity(Entity):
    """An entity in one of several text columns. Its offsets count in the text of that column."""

    column: str


def _entity_type(text_columns: Sequence[str], sourced: bool) -> pa.StructType:
    """Returns the type of an entity in the output."""
    return pa.struct([*([_COLUMN] if len(text_columns) > 1 else []), *ENTITY, *([_SOURCE] if sourced else [])])


def of_column(entities: Sequence[Entity], name: str) -> list[Entity]:
    """Returns the entities in one text column: all, if there is only this one."""
    return [entity for entity in entities if not isinstance(entity, ColumnEntity) or entity.column == name]


def redacted_columns(text_columns: Sequence[str]) -> list[str]:
    """Returns the name of the redacted column for each text column."""
    return [_REDACTED_COLUMN] if len(text_columns) == 1 else [f"redacted_{name}" for name in text_columns]


def vault_columns(text_columns: Sequence[str]) -> list[str]:
    """Returns the name of the vault column for each text column."""
    return [_VAULT_COLUMN] if len(text_columns) == 1 else [f"{_VAULT_COLUMN}_{name}" for name in text_columns]


@dataclass(frozen=True)
class Layout:
    """The columns of an output.

    nested: the source's columns, or those of `columns`, then `redacted_text` if redacted, `entities`, `error`; one row
    for each row of the source. With several text columns, each has its own redacted column, such as `redacted_title`,
    and each entity begins with the name of its column.
    mentions: `source_file`, `source_row` (from 0), the `keys`, the fields of an entity, `error`; one row for each
    entity, one for each row that could not be read or that was deleted from its table, and none for a row without
    entities.
    """

    kind: str = "nested"
    keys: tuple[str, ...] = ()  # columns of the source that a mention repeats
    redaction: Redaction | None = None
    drop_text: bool = False  # only with a redaction: leave out the text column and the texts of entities
    columns: tuple[str, ...] | None = None  # of the source, in the nested layout; None for all
    sourced: bool = False  # with rules: each entity says whether the model or a rule has found it

    def __post_init__(self) -> None:
        if self.keys and self.kind != "mentions":
            raise UserError("--key belongs to --layout mentions: the nested layout has every column of the source.")
        if self.columns is not None and self.kind == "mentions":
            raise UserError("--columns belongs to the nested layout: --layout mentions has the columns of --key.")
        if self.redaction and self.kind == "mentions" and not self.drop_text:
            raise UserError(
                "--redact adds the redacted text of each row, and --layout mentions has no rows of texts: "
                "use the nested layout, or give --drop-text to redact the texts of mentions."
            )
        if self.redaction and self.redaction.vault and self.kind == "mentions":
            raise UserError(
                "--vault seals the text of each row, and --layout mentions has no rows: use the nested layout."
            )
        if self.drop_text and not self.redaction:
            raise UserError("--drop-text leaves out what --redact replaces: give --redact too.")

    def with_column(self, name: str) -> "Layout":
        """Returns the layout with one more column of the source, unless it has all of them."""
        if self.kind == "mentions":
            return replace(self, keys=(*self.keys, name))
        return self if self.columns is None else replace(self, columns=(*self.columns, name))

    def check(self, source: pa.Schema, text_columns: tuple[str, ...]) -> None:
        """Raises UserError if this layout cannot write the columns of the source."""
        missing = [key for key in self.keys if key not in source.names]
        if missing:
            raise UserError(
                f"--key {missing[0]} is not a column of the source: give one of {', '.join(source.names) or 'none'}."
            )
        fields = _entity_type(text_columns, self.sourced).names
        added = [*fields, SOURCE_FILE, SOURCE_ROW, "error"] if self.kind == "mentions" else []
        added += [field.name for field in self._redacted_fields(text_columns)] if self.kind == "nested" else []
        taken = [name for name in self._kept(source) if name in added]
        if taken:
            raise UserError(f"The source's column {taken[0]} has a name that the output adds: rename it in the source.")
        for name in text_columns if self.drop_text else ():
            if name not in source.names:
                raise UserError(
                    f"--drop-text leaves out a column, and {name} is a part of one: redact without --drop-text."
                )
            if name in self.keys:
                raise UserError(f"--key {name} is the text that --drop-text leaves out: give another key.")

    def schema(self, source: pa.Schema, text_columns: tuple[str, ...]) -> pa.Schema:
        """Returns the schema of the output for a source with these columns."""
        if self.kind == "mentions":
            place = [pa.field(SOURCE_FILE, pa.string()), pa.field(SOURCE_ROW, pa.int64())]
            kept = [source.field(key) for key in self.keys]
            fields = list(_entity_type(text_columns, self.sourced))
            return pa.schema([*place, *kept, *fields, pa.field("error", pa.string())])
        kept = [source.field(name) for name in self._kept(source) if not (self.drop_text and name in text_columns)]
        entities = pa.list_(pa.field("element", _entity_type(text_columns, self.sourced)))  # as Parquet names it
        added = [*self._redacted_fields(text_columns), pa.field("entities", entities), pa.field("error", pa.string())]
        return pa.schema([*kept, *added], metadata=None if self.drop_text or self.columns else source.metadata)

    def _redacted_fields(self, text_columns: tuple[str, ...]) -> list[pa.Field]:
        """Returns the fields that a redaction adds to the nested layout."""
        if self.redaction is None:
            return []
        vaults = vault_columns(text_columns) if self.redaction.vault else []
        texts = [pa.field(name, pa.string()) for name in redacted_columns(text_columns)]
        return [*texts, *(pa.field(name, pa.binary()) for name in vaults)]

    def _kept(self, source: pa.Schema) -> Sequence[str]:
        """Returns the columns of the source that the output repeats."""
        if self.kind == "mentions":
            return self.keys
        return source.names if self.columns is None else self.columns

    def as_json(self) -> dict[str, Any]:
        """Returns everything in the layout that determines the result."""
        chosen = {} if self.columns is None else {"columns": list(self.columns)}
        return {
            "kind": self.kind,
            "keys": list(self.keys),
            "redaction": self.redaction and self.redaction.as_json(),
            "drop_text": self.drop_text,
            **chosen,
        }

    def rows(self, part: "Part", schema: pa.Schema) -> pa.Table:
        """Returns the rows of the output for a part of the source."""
        return self._mentions(part, schema) if self.kind == "mentions" else self._nested(part, schema)

    def _nested(self, part: "Part", schema: pa.Schema) -> pa.Table:
        entity = _entity_type(part.text_columns, self.sourced)
        columns = {
            "entities": self._lists(self._shown(part.entities), entity),
            "error": pa.array(part.errors, pa.string()),
        }
        if self.redaction:
            columns |= _redacted(self.redaction, part)
        arrays = [columns[field.name] if field.name in columns else part.batch.column(field.name) for field in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _mentions(self, part: "Part", schema: pa.Schema) -> pa.Table:
        shown = self._shown(part.entities)
        rows = [row for row, found in enumerate(shown) for _ in ([None] if found is None else found)]
        mentions = [entity for found in shown for entity in ([None] if found is None else found)]
        entity = _entity_type(part.text_columns, self.sourced)
        columns = dict(zip(entity.names, self._fields(mentions, entity), strict=True))
        columns[SOURCE_FILE] = pa.array([part.path] * len(rows), pa.string())
        columns[SOURCE_ROW] = pa.array([part.places[row] for row in rows], pa.int64())
        columns["error"] = pa.array([part.errors[row] for row in rows], pa.string())
        taken = pa.array(rows, pa.int64())
        arrays = [
            columns[field.name] if field.name in columns else part.batch.column(field.name).take(taken)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _shown(self, rows: Sequence[Sequence[Entity] | None]) -> Sequence[Sequence[Entity] | None]:
        """Returns the entities of rows as the output has them: without their texts, if it leaves out the text."""
        if self.redaction is None or not self.drop_text:
            return rows
        return [None if found is None else self.redaction.hidden(found) for found in rows]

    def _lists(self, entities: Sequence[Sequence[Entity] | None], kind: pa.StructType) -> pa.Array:
        flat = [entity for found in entities if found for entity in found]
        offsets = [0, *accumulate(len(found or ()) for found in entities)]
        missing = pa.array([found is None for found in entities], pa.bool_())
        values = pa.StructArray.from_arrays(self._fields(flat, kind), fields=list(kind))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=missing)

    def _fields(self, entities: Sequence[Entity | None], kind: pa.StructType) -> list[pa.Array]:
        """Returns an array for each field of the entities, with null for None."""
        values = {name: [entity and getattr(entity, name) for entity in entities] for name in kind.names}
        return [pa.array(values[part.name], part.type) for part in kind]


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a source file, and their entities. A sequence has one item per row, except `text_columns`."""

    path: str  # of the file, relative to the source
    places: Sequence[int]  # the number of each row in the file
    batch: pa.RecordBatch
    text_columns: tuple[str, ...]
    texts: Sequence[Texts]
    entities: Sequence[Sequence[Entity] | None]  # None where the row could not be read, or was deleted
    errors: Sequence[str | None]  # why; None for the other rows


def _redacted(redaction: Redaction, part: Part) -> dict[str, pa.Array]:
    """Returns the redacted texts by column, and their vaults if there are any.

    They are null for rows that could not be read, so that these show no text.
    """
    columns = {}
    names = zip(part.text_columns, redacted_columns(part.text_columns), vault_columns(part.text_columns), strict=True)
    for place, (name, redacted, vault) in enumerate(names):
        texts: list[str | None] = []
        sealed: list[bytes | None] = []
        for own, found, number in zip(part.texts, part.entities, part.places, strict=True):
            text, seal = own[place], None
            if found is None or text is None:
                text = None
            elif redaction.vault:
                where = f"{part.path}\0{number}\0{name}"
                text, seal = redaction.sealed_text(text, of_column(found, name), where, document=found)
            else:
                text = redaction.text(text, of_column(found, name), document=found)
            texts.append(text)
            sealed.append(seal)
        columns[redacted] = pa.array(texts, pa.string())
        columns[vault] = pa.array(sealed, pa.binary())
    return columns
