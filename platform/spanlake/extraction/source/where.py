"""Parses `--where`, a condition in DuckDB's SQL, with sqlglot. `condition.py` has the supported conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pyarrow as pa

from spanlake.errors import UserError, shown
from spanlake.extraction.source.condition import (
    FUNCTIONS,
    MATCHES,
    Both,
    Column,
    Comparison,
    Condition,
    Either,
    Function,
    IsNull,
    IsTrue,
    Literal,
    Matches,
    Not,
    OneOf,
    Value,
    moment,
)
from spanlake.extraction.source.widening import widened

if TYPE_CHECKING:
    from sqlglot.expressions import Expr

_KNOWN = (
    f"=, <>, <, <=, >, >=, IN, BETWEEN, IS NULL, AND, OR, NOT, {', '.join([*MATCHES, *FUNCTIONS])} "
    "of columns and literals"
)
_COMPARISONS = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_FUNCTIONS = {"Length": "length", "Lower": "lower", "Upper": "upper"}
_MATCHES = {
    "Like": "LIKE",
    "ILike": "ILIKE",
    "StartsWith": "starts_with",
    "EndsWith": "ends_with",
    "Contains": "contains",
    "RegexpLike": "regexp_matches",
}
_CASTS = {
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMPNTZ": pa.timestamp("us"),
    "TIMESTAMPTZ": pa.timestamp("us", "UTC"),
}


@dataclass(frozen=True)
class Where:
    text: str
    condition: Condition
    columns: frozenset[str]  # of the source that the condition uses


def parse_where(text: str) -> Where:
    """Returns the condition in a text.

    Raises UserError if sqlglot is not installed, if the text is not a condition, or if the condition is not supported.
    """
    if find_spec("sqlglot") is None:
        raise UserError("--where needs sqlglot, which is not installed: pip install 'spanlake[ray]'.")
    import sqlglot

    try:
        tree = sqlglot.parse_one(text, dialect="duckdb", error_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.errors.ParseError as error:
        reasons = "; ".join(str(found.get("description")) for found in error.errors)
        raise UserError(
            f"--where {shown(text)} is not a condition in SQL ({reasons or 'it is empty'}): "
            "write a condition such as \"lang = 'en' AND year >= 2020\"."
        ) from error
    columns = frozenset(_column(node).path[0] for node in tree.find_all(sqlglot.exp.Column))
    return Where(text.strip(), _condition(tree), columns)


# --- conditions ---------------------------------------------------------------------------------------------------


def _condition(node: Expr) -> Condition:
    kind = type(node).__name__
    if kind in _COMPARISONS:
        _check_arguments(node, "this", "expression")
        return Comparison(_COMPARISONS[kind], _value(node.this), _value(node.expression))
    if kind in _MATCHES:
        return _match(node, _MATCHES[kind])
    if kind in _OTHERS:
        return _OTHERS[kind](node)
    raise _unknown(node)


def _match(node: Expr, name: str) -> Condition:
    _check_arguments(node, "this", "expression", "negate")
    pattern = _value(node.expression)
    if not isinstance(pattern, Literal) or not pa.types.is_string(pattern.scalar.type):
        raise _unknown(node)
    found = Matches(name, _value(node.this), pattern.scalar.as_py())
    return Not(found) if node.args.get("negate") else found


def _both(node: Expr) -> Condition:
    _check_arguments(node, "this", "expression")
    return Both(_condition(node.this), _condition(node.expression))


def _either(node: Expr) -> Condition:
    _check_arguments(node, "this", "expression")
    return Either(_condition(node.this), _condition(node.expression))


def _not(node: Expr) -> Condition:
    _check_arguments(node, "this")
    return Not(_condition(node.this))


def _inner(node: Expr) -> Condition:
    _check_arguments(node, "this")
    return _condition(node.this)


def _is_null(node: Expr) -> Condition:
    _check_arguments(node, "this", "expression")
    if type(node.expression).__name__ != "Null":
        raise _unknown(node)
    return IsNull(_value(node.this))


def _between(node: Expr) -> Condition:
    _check_arguments(node, "this", "low", "high")
    value = _value(node.this)
    low, high = _value(node.args["low"]), _value(node.args["high"])
    return Both(Comparison(">=", value, low), Comparison("<=", value, high))


def _one_of(node: Expr) -> Condition:
    _check_arguments(node, "this", "expressions")
    literals = [_value(item) for item in node.expressions]
    scalars = [literal.scalar for literal in literals if isinstance(literal, Literal)]
    kind = reduce(lambda one, other: one and widened(one, other), (scalar.type for scalar in scalars), pa.null())
    if not literals or len(scalars) < len(literals) or kind is None:
        raise _unknown(node)
    return OneOf(_value(node.this), pa.array([scalar.cast(kind).as_py() for scalar in scalars], kind))


def _is_true(node: Expr) -> Condition:
    return IsTrue(_column(node))


_OTHERS: dict[str, Callable[[Expr], Condition]] = {
    "And": _both,
    "Or": _either,
    "Not": _not,
    "Paren": _inner,
    "Is": _is_null,
    "Between": _between,
    "In": _one_of,
    "Column": _is_true,
}

# --- values -------------------------------------------------------------------------------------------------------


def _value(node: Expr) -> Value:
    kind = type(node).__name__
    if kind == "Column":
        return _column(node)
    if kind == "Paren":
        return _value(node.this)
    if kind == "Boolean":
        return Literal(pa.scalar(bool(node.this)))
    if kind == "Literal":
        return Literal(pa.scalar(node.this) if node.is_string else _number(node.this))
    if kind == "Neg" and type(node.this).__name__ == "Literal" and not node.this.is_string:
        return Literal(_number(f"-{node.this.this}"))
    if kind == "Cast":
        return _cast(node)
    if kind in _FUNCTIONS:
        _check_arguments(node, "this")
        argument = _value(node.this)
        if not isinstance(argument, Literal):
            return Function(_FUNCTIONS[kind], argument)
    raise _unknown(node)


def _column(node: Expr) -> Column:
    _check_arguments(node, "this", "table", "db", "catalog")
    parts = [node.args.get(name) for name in ("catalog", "db", "table", "this")]  # of a path, in order
    return Column(tuple(part.name for part in parts if part))


def _number(text: str) -> pa.Scalar:
    if text.lstrip("-").isdecimal():
        whole = int(text)
        return pa.scalar(whole, pa.int64()) if -(1 << 63) <= whole < 1 << 63 else pa.scalar(Decimal(text))
    return pa.scalar(float(text)) if "e" in text.lower() else pa.scalar(Decimal(text))


def _cast(node: Expr) -> Literal:
    """Returns a literal of a date or time, such as DATE '2024-12-31'."""
    literal, kind = _value(node.this), _CASTS.get(node.args["to"].this.name)
    if not isinstance(literal, Literal) or kind is None or not pa.types.is_string(literal.scalar.type):
        raise _unknown(node)
    return Literal(moment(literal.scalar, kind))


def _check_arguments(node: Expr, *known: str) -> None:
    """Raises UserError if a part of SQL has unsupported arguments, such as LIKE with ESCAPE."""
    if any(value for name, value in node.args.items() if name not in known):
        raise _unknown(node)


def _unknown(node: Expr) -> UserError:
    return UserError(f"--where has {node.sql('duckdb')}, which is not supported: use {_KNOWN}.")
