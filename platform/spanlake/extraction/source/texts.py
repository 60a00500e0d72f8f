"""Finds the text column by its name or by a path into structs (`page.body`), and reads its strings or UTF-8 bytes."""

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


def read_texts(batch: pa.RecordBatch, name: str) -> tuple[list[str | None], list[str | None]]:
    """Returns the text of each row, and the error of each row. Exactly one of the two is None."""
    read = [_text(value) for value in text_values(batch, name)]
    if READ_ERROR in batch.schema.names:
        read = [
            pair if error is None else (None, error)
            for pair, error in zip(read, batch.column(READ_ERROR).to_pylist(), strict=True)
        ]
    return [text for text, _ in read], [error for _, error in read]


def _text(value: pa.Scalar) -> tuple[str | None, str | None]:
    try:
        text = value.as_py()  # Arrow does not check that its strings are UTF-8
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        return None, f"text is not valid UTF-8 (byte {error.start})"
    return text, "text is null" if text is None else None
