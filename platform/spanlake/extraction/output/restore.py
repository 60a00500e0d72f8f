"""Undoes a redaction: writes the rows of an output with their texts, which the key brings back from the vault."""

import uuid

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.extraction.output.layout import redacted_columns, vault_columns
from spanlake.extraction.output.ledger import SUFFIX, Ledger
from spanlake.extraction.output.rows import batches, committed_units
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.texts import text_type
from spanlake.redaction import key_check
from spanlake.redaction.vault import unseal
from spanlake.storage import Place


def restore(ledger: Ledger, target: Place, key: bytes) -> int:
    """Writes a file for each committed unit into a new or empty directory, and returns the number of rows.

    In the place of `redacted_text` and `vault` is the text column, and entities have their texts again.
    Raises UserError for an output without a vault, for another key, and for a directory that is not empty.
    """
    redaction = ledger.manifest["layout"]["redaction"] or {}
    if not redaction.get("vault"):
        raise UserError(f"{ledger.output.uri} has no vault: `spanlake extract --redact … --vault` makes one.")
    if redaction["key_check"] != key_check(key):
        raise UserError(f"The key is not the one of {ledger.output.uri}: give the key with which it was extracted.")
    if target.kind() != fs.FileType.NotFound and target.list(recursive=False):
        raise UserError(f"{target.uri} is not empty: choose a new or empty directory.")
    target.filesystem.create_dir(target.path, recursive=True)
    columns = _columns(ledger)
    rows = 0
    for unit in committed_units(ledger):
        draft = f".{uuid.uuid4().hex}{SUFFIX}"  # hidden from readers
        with target.replacing(unit.name + SUFFIX, draft) as path:
            rows += _write(ledger, unit, columns, key, target.filesystem, path)
    return rows


def _write(
    ledger: Ledger, unit: Unit, columns: dict[str, pa.Field], key: bytes, filesystem: fs.FileSystem, path: str
) -> int:
    rows = 0
    with pq.ParquetWriter(path, pa.schema(columns.values()), filesystem=filesystem, compression="zstd") as writer:
        for batch in batches(ledger, unit, ledger.schema.names):
            writer.write_batch(_restored(ledger, batch, columns, key, unit.path))
            rows += batch.num_rows
    return rows


def _columns(ledger: Ledger) -> dict[str, pa.Field]:
    """Returns the columns to write, by those of the output: the text for a redacted text, and nothing for a vault."""
    texts = dict(zip(redacted_columns(ledger.text_columns), ledger.text_columns, strict=True))
    columns = {}
    for field in ledger.schema:
        if field.name in texts:
            if text_type(ledger.schema, texts[field.name]) is None:  # otherwise the output has the text itself
                columns[field.name] = pa.field(texts[field.name], pa.string())
        elif field.name not in vault_columns(ledger.text_columns):
            columns[field.name] = field
    return columns


def _restored(
    ledger: Ledger, batch: pa.RecordBatch, columns: dict[str, pa.Field], key: bytes, source: str
) -> pa.RecordBatch:
    """Returns a batch of the output with its texts. `source` is the file that its rows are from."""
    names = ledger.text_columns
    texts = {
        name: _texts(batch, redacted, vault, key, source)
        for name, redacted, vault in zip(names, redacted_columns(names), vault_columns(names), strict=True)
    }
    arrays = []
    for name, field in columns.items():
        if name == "entities" and ledger.manifest["layout"]["drop_text"]:
            arrays.append(_entities(batch.column(name), texts))
        elif field.name in texts and name != field.name:
            arrays.append(pa.array(texts[field.name], pa.string()))
        else:
            arrays.append(batch.column(name))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(columns.values()))


def _texts(batch: pa.RecordBatch, redacted: str, vault: str, key: bytes, source: str) -> list[str | None]:
    texts: list[str | None] = []
    for text, sealed in zip(batch.column(redacted).to_pylist(), batch.column(vault).to_pylist(), strict=True):
        try:
            texts.append(None if text is None else unseal(key, text, sealed or b""))
        except ValueError as error:
            raise UserError(f"A row of {source} cannot be restored ({one_line(error)}).") from error
    return texts


def _entities(entities: pa.Array, texts: dict[str, list[str | None]]) -> pa.Array:
    """Returns the entities of rows with their texts, which the output lacks."""
    first = next(iter(texts))
    rows = entities.to_pylist()
    for row, found in enumerate(rows):
        for entity in found or ():
            text = texts[entity.get("column", first)][row] or ""
            entity["text"] = text[entity["start"] : entity["end"]]
    return pa.array(rows, entities.type)
