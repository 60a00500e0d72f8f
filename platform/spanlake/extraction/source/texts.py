"""Finds text columns by their names or by paths into structs (`page.body`), and reads their strings or UTF-8 bytes."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

READ_ERROR = "spanlake read error"  # a column that a reader adds: the reason why a line is not a row


def text_path(columns: Sequence[str], name: str) -> list[str]:
    """Returns the names on the path of a text column. A column that has the whole name, with its dots, comes first."""
    return [name] if name in columns else name.split(".")


def text_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Returns the type at a name or path; None if there is nothing."""
    return type_at(schema, text_path(schema.names, name))


def type_at(schema: pa.Schema, path: Sequence[str]) -> pa.DataType | None:
    """Returns the type of a column, or of a field inside it; None if there is nothing."""
    kind: pa.DataType = pa.struct(schema)
    for part in path:
        index = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
        if index < 0:
            return None
        kind = kind.field(index).type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Returns whether values of this type are strings: of any width, plain or dictionary-encoded."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def text_columns(schema: pa.Schema, prefix: str = "") -> list[str]:
    """Returns the names and paths of columns with strings."""
    found = []
    for field in schema:
        if is_text(field.type):
            found.append(prefix + field.name)
        elif pa.types.is_struct(field.type):
            found += text_columns(pa.schema(list(field.type)), f"{prefix}{field.name}.")
    return found


def text_values(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns the values at a name or path; null where a struct on the path is null."""
    first, *inner = text_path(batch.schema.names, name)
    values = batch.column(first)
    return pc.struct_field(values, inner) if inner else values


def decoded(values: pa.Array) -> pa.Array:
    """Returns bytes as strings, with null for bytes that are not UTF-8. Returns strings unchanged."""
    if not is_bytes(values.type):
        return values
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [_text(value)[0] for value in values]
        return pa.array(texts, pa.large_string())


Texts = tuple[str | None, ...]  # of one row: one for each text column; None where there is no text


def read_texts(batch: pa.RecordBatch, names: Sequence[str]) -> tuple[list[Texts], list[str | None]]:
    """Returns the texts of each row, and the error of each row; None if it can be read.

    A row has an error if all its texts are null, or if one cannot be read. Its texts are then all None.
    """
    columns = [[_text(value) for value in text_values(batch, name)] for name in names]
    errors = [_error(row, names) for row in zip(*columns, strict=True)]
    if READ_ERROR in batch.schema.names:
        found = batch.column(READ_ERROR).to_pylist()
        errors = [of_line or error for of_line, error in zip(found, errors, strict=True)]
    texts = [
        tuple(text if error is None else None for text, _ in row)
        for row, error in zip(zip(*columns, strict=True), errors, strict=True)
    ]
    return texts, errors


def _text(value: pa.Scalar) -> tuple[str | None, str | None]:
    """Returns a text, or the reason why it cannot be read; None and None for null."""
    try:
        text = value.as_py()  # Arrow does not check that its strings are UTF-8
        return text.decode() if isinstance(text, bytes) else text, None
    except UnicodeDecodeError as error:
        return None, f"text is not valid UTF-8 (byte {error.start})"


def _error(row: Sequence[tuple[str | None, str | None]], names: Sequence[str]) -> str | None:
    wrong = [located(name, error, names) for name, (_, error) in zip(names, row, strict=True) if error]
    if wrong:
        return "; ".join(wrong)
    if any(text is not None for text, _ in row):
        return None
    return "text is null" if len(names) == 1 else "all texts are null"


def located(name: str, error: str, names: Sequence[str]) -> str:
    """Returns an error with the name of its text column, if there are several columns."""
    return error if len(names) == 1 else f"{name}: {error}"
