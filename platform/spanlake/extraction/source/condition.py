"""Evaluates conditions on the rows of a batch, and decides whether unread rows can fulfil them.

As in SQL, a comparison with a null is neither true nor false. Only rows for which a condition is true are chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from spanlake.errors import UserError
from spanlake.extraction.source.texts import type_at
from spanlake.extraction.source.widening import decoded_type, stored_type, widened

Path = tuple[str, ...]  # a column, and fields inside it


@dataclass(frozen=True)
class Bounds:
    """What is known of a column in some rows before they are read."""

    ends: pa.Array | None  # its least and greatest value; None if they are not known
    has_nulls: bool = True  # whether it may have nulls
    has_values: bool = True


BoundsOf = Callable[[Path], Bounds]


class Condition(Protocol):
    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        """Returns for each row whether it fulfils the condition; null where this is not known.

        Raises UserError if a column is missing, or has a type that does not fit the condition.
        """
        ...

    def may_hold(self, bounds: BoundsOf) -> bool:
        """Returns whether a row within these bounds can fulfil the condition. False is certain."""
        ...


# --- values -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    path: Path

    def value(self, batch: pa.RecordBatch) -> pa.Array:
        if type_at(batch.schema, self.path) is None:
            raise UserError(f"--where uses {'.'.join(self.path)}, which the source lacks: use its own columns.")
        values = batch.column(self.path[0])
        return _plain(pc.struct_field(values, list(self.path[1:])) if len(self.path) > 1 else values)


@dataclass(frozen=True)
class Literal:
    scalar: pa.Scalar

    def value(self, batch: pa.RecordBatch) -> pa.Scalar:
        return self.scalar


@dataclass(frozen=True)
class Function:
    """A function of texts, one of FUNCTIONS."""

    name: str
    argument: "Column | Function"

    def value(self, batch: pa.RecordBatch) -> pa.Array:
        return FUNCTIONS[self.name](_texts(self.argument.value(batch), self.name))


FUNCTIONS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "length": pc.utf8_length,
    "lower": pc.utf8_lower,
    "upper": pc.utf8_upper,
}
Value = Column | Literal | Function


def _plain(values: pa.Array) -> pa.Array:
    """Returns values in a type that Arrow can compare."""
    kind = decoded_type(stored_type(values.type))
    return values.cast(pa.float32() if pa.types.is_float16(kind) else kind)


def _texts(values: pa.Array, what: str) -> pa.Array:
    if widened(values.type, pa.string()) not in (pa.string(), pa.large_string()):
        raise UserError(f"--where has {what} of {values.type}: use it only with texts.")
    return values.cast(pa.large_string())


# --- conditions ---------------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[Any, Any], pa.Array]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Comparison:
    operator: str  # of _COMPARISONS
    left: Value
    right: Value

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        left, right = _common(self.left.value(batch), self.right.value(batch))
        return _COMPARISONS[self.operator](left, right)

    def may_hold(self, bounds: BoundsOf) -> bool:
        operator, column, literal = self.operator, self.left, self.right
        if isinstance(column, Literal):
            operator, column, literal = _TURNED.get(operator, operator), literal, column
        if not isinstance(column, Column) or not isinstance(literal, Literal):
            return True
        known = bounds(column.path)
        if known.ends is None or operator == "<>":
            return known.has_values
        (least, greatest), value = _ends_and(known.ends, literal.scalar)
        if operator in ("=", "<", "<=") and pc.less(value, least).as_py():
            return False
        if operator in ("=", ">", ">=") and pc.greater(value, greatest).as_py():
            return False
        return not (operator == "<" and pc.equal(value, least).as_py()) and not (
            operator == ">" and pc.equal(value, greatest).as_py()
        )


@dataclass(frozen=True)
class OneOf:
    """The condition IN."""

    value: Value
    literals: pa.Array

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        values, literals = _common(self.value.value(batch), self.literals)
        return pc.if_else(pc.is_null(values), None, pc.is_in(values, literals))

    def may_hold(self, bounds: BoundsOf) -> bool:
        if not isinstance(self.value, Column):
            return True
        known = bounds(self.value.path)
        if known.ends is None:
            return known.has_values
        (least, greatest), literals = _ends_and(known.ends, self.literals)
        inside = pc.and_(pc.greater_equal(literals, least), pc.less_equal(literals, greatest))
        return bool(pc.any(inside).as_py())


@dataclass(frozen=True)
class Matches:
    """LIKE and similar conditions: a predicate of texts with a pattern, one of MATCHES."""

    name: str
    value: Value
    pattern: str

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        return MATCHES[self.name](_texts(self.value.value(batch), self.name), self.pattern)

    def may_hold(self, bounds: BoundsOf) -> bool:
        return not isinstance(self.value, Column) or bounds(self.value.path).has_values


def _like(texts: pa.Array, pattern: str, *, ignore_case: bool = False) -> pa.Array:
    return pc.match_like(
        texts, pattern.replace("\\", "\\\\"), ignore_case=ignore_case
    )  # DuckDB's LIKE has no default escape


MATCHES: dict[str, Callable[[pa.Array, str], pa.Array]] = {
    "LIKE": _like,
    "ILIKE": lambda texts, pattern: _like(texts, pattern, ignore_case=True),
    "starts_with": pc.starts_with,
    "ends_with": pc.ends_with,
    "contains": pc.match_substring,
    "regexp_matches": pc.match_substring_regex,
}


@dataclass(frozen=True)
class IsNull:
    value: Value

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        return pc.is_null(self.value.value(batch))

    def may_hold(self, bounds: BoundsOf) -> bool:
        return not isinstance(self.value, Column) or bounds(self.value.path).has_nulls


@dataclass(frozen=True)
class IsTrue:
    """A column of booleans as a condition."""

    value: Column

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        values = self.value.value(batch)
        if not pa.types.is_boolean(values.type):
            raise UserError(
                f"--where has {'.'.join(self.value.path)}, which is {values.type}: compare it with a value."
            )
        return values

    def may_hold(self, bounds: BoundsOf) -> bool:
        return bounds(self.value.path).has_values


@dataclass(frozen=True)
class Not:
    condition: Condition

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        return pc.invert(self.condition.truth(batch))

    def may_hold(self, bounds: BoundsOf) -> bool:
        if isinstance(self.condition, IsNull) and isinstance(self.condition.value, Column):
            return bounds(self.condition.value.path).has_values
        return True


@dataclass(frozen=True)
class Both:
    """The condition AND."""

    left: Condition
    right: Condition

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        return pc.and_kleene(self.left.truth(batch), self.right.truth(batch))

    def may_hold(self, bounds: BoundsOf) -> bool:
        return self.left.may_hold(bounds) and self.right.may_hold(bounds)


@dataclass(frozen=True)
class Either:
    """The condition OR."""

    left: Condition
    right: Condition

    def truth(self, batch: pa.RecordBatch) -> pa.Array:
        return pc.or_kleene(self.left.truth(batch), self.right.truth(batch))

    def may_hold(self, bounds: BoundsOf) -> bool:
        return self.left.may_hold(bounds) or self.right.may_hold(bounds)


# --- types --------------------------------------------------------------------------------------------------------

_Compared: TypeAlias = "pa.Array | pa.Scalar"


def _ends_and(ends: pa.Array, literals: _Compared) -> tuple[pa.Array, _Compared]:
    return _common(_plain(ends), literals)


def _common(left: _Compared, right: _Compared) -> tuple[_Compared, _Compared]:
    """Returns both values in a common type in which Arrow can compare them.

    Raises UserError if there is no such type.
    """
    one, other = left.type, right.type
    if pa.types.is_string(one) and pa.types.is_temporal(other):
        return moment(left, other), right
    if pa.types.is_string(other) and pa.types.is_temporal(one):
        return left, moment(right, one)
    kind = widened(one, other) or _approximate(one, other)
    if kind is None or pa.types.is_nested(kind):
        raise UserError(
            f"--where compares {one} with {other}, which have no common type: use a literal of the column's type."
        )
    return left.cast(kind), right.cast(kind)


def _approximate(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type in which SQL compares values if no type holds both exactly."""
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return pa.decimal128(20, 0)
    numbers = [
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) for kind in (one, other)
    ]
    if all(numbers):
        return pa.float64()
    days = [kind for kind in (one, other) if pa.types.is_date(kind)]
    moments = [kind for kind in (one, other) if pa.types.is_timestamp(kind)]
    return moments[0] if days and moments and moments[0].tz is None else None


def moment(texts: _Compared, kind: pa.DataType) -> _Compared:
    """Returns the dates or times in strings. A time without an offset is in UTC if the column has a time zone."""
    try:
        if pa.types.is_time(kind):
            return pa.scalar(time.fromisoformat(texts.as_py()), kind)
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return _instant(texts).cast(kind)
        return texts.cast(kind)
    except (pa.ArrowException, ValueError, AttributeError) as error:
        raise UserError(
            f"--where compares {kind} with {texts}, which is not a value of this type: "
            "write a date as '2024-12-31' and a time as '2024-12-31 23:59:59'."
        ) from error


def _instant(texts: _Compared) -> _Compared:
    try:
        return texts.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowException:
        return pc.assume_timezone(texts.cast(pa.timestamp("us")), "UTC")
