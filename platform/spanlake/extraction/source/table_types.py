"""The types that Delta Lake and Apache Iceberg share."""

import pyarrow as pa

from spanlake.errors import UserError


def plain(schema: pa.Schema) -> pa.Schema:
    """Returns the schema in types that both formats have, without large, dictionary-encoded and unsigned types.

    Raises UserError that names all columns of types that neither format can hold.
    """
    lost = [f"{field.name} ({', '.join(_lost(field.type))})" for field in schema if _lost(field.type)]
    if lost:
        raise UserError(
            f"A table cannot hold the types of the column{'s' * (len(lost) > 1)} {', '.join(lost)}: "
            "cast them in the source."
        )
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


_PLAIN = {
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
}
_DECIMAL_DIGITS = 38


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")  # the same instants
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_time(kind):
        return pa.time64("us")
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return _PLAIN.get(kind, kind)


def _lost(kind: pa.DataType) -> list[str]:
    """Returns the types in a type, including itself, that no table has."""
    if pa.types.is_duration(kind) or pa.types.is_interval(kind) or pa.types.is_union(kind) or _is_view(kind):
        return [str(kind)]
    if pa.types.is_decimal(kind) and kind.precision > _DECIMAL_DIGITS:
        return [str(kind)]
    inner = [kind.value_type] if pa.types.is_dictionary(kind) else [part.type for part in _parts(kind)]
    return [name for part in inner for name in _lost(part)]


def _is_view(kind: pa.DataType) -> bool:
    """Returns whether a type is a list view. Arrow's cast from list views to lists loses items."""
    return pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)


def _parts(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


def may_lose(kind: pa.DataType) -> bool:
    """Returns whether the plain type may not hold a value of the type: plain times count microseconds."""
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return bool(kind.unit != "us")
    return any(may_lose(part.type) for part in _parts(kind))
