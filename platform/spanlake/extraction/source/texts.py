"""The text column: found by its name or by a path into structs (`page.body`), of strings or of bytes that are UTF-8."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

READ_ERROR = "spanlake read error"  # a column that a reader adds: why a line is no row


def text_path(columns: Sequence[str], name: str) -> list[str]:
    """The names to follow from a table's columns: a column whose own name has a dot comes first."""
    return [name] if name in columns else name.split(".")


def text_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type at a name or path; None where there is nothing."""
    kind: pa.DataType = pa.struct(schema)
    for part in text_path(schema.names, name):
        index = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
        if index < 0:
            return None
        kind = kind.field(index).type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings: of any width, plain or dictionary-encoded."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def text_columns(schema: pa.Schema, prefix: str = "") -> list[str]:
    """The names and paths that hold strings."""
    found = []
    for field in schema:
        if is_text(field.type):
            found.append(prefix + field.name)
        elif pa.types.is_struct(field.type):
            found += text_columns(pa.schema(list(field.type)), f"{prefix}{field.name}.")
    return found


def text_values(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The values at a name or path, null where a struct on the way is."""
    first, *inner = text_path(batch.schema.names, name)
    values = batch.column(first)
    return pc.struct_field(values, inner) if inner else values


def decoded(values: pa.Array) -> pa.Array:
    """Returns bytes as strings, null where they are not UTF-8; strings as they are."""
    if not is_bytes(values.type):
        return values
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [_text(value)[0] for value in values]
        return pa.array(texts, pa.large_string())


def read_texts(batch: pa.RecordBatch, name: str) -> tuple[list[str | None], list[str | None]]:
    """Returns the text of each row, and why a row has no text; of the two, one is None and the other is not."""
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
