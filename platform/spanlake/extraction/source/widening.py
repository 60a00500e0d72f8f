"""Merges the schemas of files: each column gets the type that holds every value without loss."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from spanlake.errors import UserError
from spanlake.extraction.source.texts import is_bytes, is_text

_INTEGER_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}  # bits of an integer -> decimal digits that hold it
_FLOAT_FOR_INTEGERS = {8: 16, 16: 32, 32: 64}  # bits of an integer -> bits of the smallest float that holds it
_DECIMAL_DIGITS = ((38, pa.decimal128), (76, pa.decimal256))
_TIME_UNITS = ("s", "ms", "us", "ns")


def merged(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Returns the common schema of the files in a source. `schemas` maps their paths to their schemas.

    A column that a file lacks, or that has only nulls there, is null in the rows of the file. The metadata are those
    of the first file.
    Raises UserError that names every column without a common type.
    """
    fields: dict[str, pa.Field] = {}
    typed: dict[str, str] = {}  # column -> path of the file that gave its type
    conflicts: dict[str, str] = {}
    for path, schema in schemas.items():
        for field in schema:
            known = fields.setdefault(field.name, field)
            kind = widened(known.type, field.type)
            if kind is None:
                conflicts.setdefault(field.name, _conflict(field.name, known.type, typed[field.name], field.type, path))
                continue
            if kind != known.type or field.name not in typed:
                typed[field.name] = path
            fields[field.name] = known.with_type(kind).with_nullable(known.nullable or field.nullable)
    if conflicts:
        raise UserError(
            f"The column{'s' * (len(conflicts) > 1)} {'; '.join(conflicts.values())}: "
            "give each of them one type, or extract the files to two outputs."
        )
    first = next(iter(schemas.values()))
    lacking = {name for schema in schemas.values() for name in fields.keys() - set(schema.names)}
    return pa.schema(
        [field.with_nullable(field.nullable or field.name in lacking) for field in fields.values()], first.metadata
    )


def _conflict(name: str, known: pa.DataType, known_path: str, found: pa.DataType, path: str) -> str:
    """Returns the types that do not fit, in words. For structs, it names the first fields that do not fit."""
    if pa.types.is_struct(known) and pa.types.is_struct(found):
        for field in known:
            index = found.get_field_index(field.name)
            if index >= 0 and widened(field.type, found.field(index).type) is None:
                inner = f"{name}.{field.name}"
                return _conflict(inner, field.type, known_path, found.field(index).type, path)
    return f"{name} is {known} in {known_path} and {found} in {path}"


def widened(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type that holds every value of both types; None if there is no such type.

    It is the type of Arrow's permissive promotion, except for promotions that lose digits. Timestamps of two time zones
    become the same instants in UTC. Different dictionaries become their plain values.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if isinstance(one, pa.BaseExtensionType) or isinstance(other, pa.BaseExtensionType):
        return widened(stored_type(one), stored_type(other))
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return widened(decoded_type(one), decoded_type(other))
    for applies, join in _JOINS:
        if applies(one) and applies(other):
            return join(one, other)
    return None


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Returns the storage type of an extension type, or any other type unchanged."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a dictionary's values, or any other type unchanged."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


# --- numbers ------------------------------------------------------------------------------------------------------


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_decimal(one) or pa.types.is_decimal(other):
        return _decimal(one, other)
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return _float(one, other)
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return one if one.bit_width > other.bit_width else other
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _float(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    widths = [
        kind.bit_width if pa.types.is_floating(kind) else _FLOAT_FOR_INTEGERS.get(kind.bit_width)
        for kind in (one, other)
    ]
    if None in widths:
        return None
    return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[max(filter(None, widths))]


def _decimal(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return None
    places = [
        (kind.precision, kind.scale) if pa.types.is_decimal(kind) else (_digits(kind), 0) for kind in (one, other)
    ]
    scale = max(scale for _, scale in places)
    precision = scale + max(precision - scale for precision, scale in places)
    return next((make(precision, scale) for most, make in _DECIMAL_DIGITS if precision <= most), None)


def _digits(integer: pa.DataType) -> int:
    return _INTEGER_DIGITS[integer.bit_width] + (integer == pa.uint64())


# --- texts and bytes ----------------------------------------------------------------------------------------------


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    return is_text(kind) or is_bytes(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind)


def _texts(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    large = any(pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) for kind in (one, other))
    if is_text(one) and is_text(other):
        return pa.large_string() if large else pa.string()
    return pa.large_binary() if large else pa.binary()


# --- times --------------------------------------------------------------------------------------------------------


def _finer(one: pa.DataType, other: pa.DataType) -> str:
    return max(one.unit, other.unit, key=_TIME_UNITS.index)


def _timestamps(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if (one.tz is None) != (other.tz is None):
        return None
    return pa.timestamp(_finer(one, other), one.tz if one.tz == other.tz else "UTC")


def _clocks(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    unit = _finer(one, other)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


# --- nested -------------------------------------------------------------------------------------------------------


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lists(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    kind = widened(one.value_type, other.value_type)
    if kind is None:
        return None
    nullable = one.value_field.nullable or other.value_field.nullable
    item = one.value_field.with_type(kind).with_nullable(nullable)
    large = pa.types.is_large_list(one) or pa.types.is_large_list(other)
    return pa.large_list(item) if large else pa.list_(item)


def _structs(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    fields: dict[str, pa.Field] = {}
    for field in [*one, *other]:
        known = fields.setdefault(field.name, field)
        kind = widened(known.type, field.type)
        if kind is None:
            return None
        in_both = one.get_field_index(field.name) >= 0 and other.get_field_index(field.name) >= 0
        fields[field.name] = known.with_type(kind).with_nullable(known.nullable or field.nullable or not in_both)
    return pa.struct(list(fields.values()))


def _maps(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    key, item = widened(one.key_type, other.key_type), widened(one.item_type, other.item_type)
    return None if key is None or item is None else pa.map_(key, item)


_Join = Callable[[pa.DataType, pa.DataType], pa.DataType | None]
_JOINS: tuple[tuple[Callable[[pa.DataType], bool], _Join], ...] = (
    (_is_number, _numbers),
    (_is_text_or_bytes, _texts),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_time, _clocks),
    (pa.types.is_duration, lambda one, other: pa.duration(_finer(one, other))),
    (pa.types.is_date, lambda one, other: pa.date64()),
    (_is_list, _lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_map, _maps),
)
