"""The types that Delta Lake and Apache Iceberg share."""

import pyarrow as pa

from spanlake.errors import UserError


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema in the types that both formats have: no large or dictionary-encoded ones, no unsigned integers.

    Raises: UserError for a type that neither can hold.
    """
    return pa.schema([field.with_type(_plain(field.type, field.name)) for field in schema])


_PLAIN = {
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.float16(): pa.float32(),
}


def _plain(kind: pa.DataType, name: str) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type, name)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type, name)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type, name)))
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type, name), _plain(kind.item_type, name))
    if pa.types.is_time(kind):
        return pa.time64("us")
    if kind == pa.uint64() or pa.types.is_duration(kind):
        raise UserError(f"The column {name} holds {kind}, which a table cannot: cast it in the source.")
    return _PLAIN.get(kind, kind)
