"""What a table or data set must do to receive the rows of an output."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import pyarrow as pa

from spanlake.errors import ShortfallError
from spanlake.extraction.source.model import CHANGE

COMMITS = 8  # attempts to commit, if other writers change the table in the meantime


@dataclass(frozen=True)
class TableOptions:
    """How rows are added to a table."""

    partition_by: tuple[str, ...] = ()  # columns; for a new table
    merge_on: tuple[str, ...] = ()  # columns of the key by which rows replace those of the table
    evolve: bool = False  # add columns that the table lacks, and widen those that are too narrow


class UnitRows(NamedTuple):
    """The rows of one unit. They can be read several times."""

    name: str
    read: Callable[[], Iterator[pa.RecordBatch]]


def all_rows(units: Sequence[UnitRows]) -> Iterator[pa.RecordBatch]:
    return chain.from_iterable(unit.read() for unit in units)


class Target(Protocol):
    """A table that receives rows. Its methods raise whatever its library raises."""

    options: TableOptions

    def __str__(self) -> str:
        """Returns its name, as in `--into`."""
        ...

    def fitted(self, schema: pa.Schema) -> pa.Schema:
        """Returns the types in which the table holds columns. Raises UserError for columns that it cannot hold."""
        ...

    def holds(self, mark: str) -> bool: ...

    def append(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        """Adds rows and mark in one transaction, and the columns that the table lacks if it may."""
        ...

    def merge(self, units: Sequence[UnitRows], schema: pa.Schema, mark: str) -> None:
        """Replaces the rows with the same key, and adds the others and the mark, in one transaction.

        The rows have the column CHANGE too, which `schema` lacks. Rows with the keys of deleted rows are deleted.
        """
        ...


def marked(schema: pa.Schema) -> pa.Schema:
    """Returns the schema with the column CHANGE."""
    return schema.append(pa.field(CHANGE, pa.string()))


def held(table: object) -> ShortfallError:
    return ShortfallError(f"another run has added the same rows to {table}")


def beaten(table: object) -> ShortfallError:
    return ShortfallError(f"other writers changed {table} during each of {COMMITS} attempts to commit")
