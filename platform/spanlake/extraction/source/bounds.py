"""What partitions and the statistics of row groups say about columns, before rows are read."""

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.extraction.source.condition import Bounds, BoundsOf, Condition, Path
from spanlake.extraction.source.model import Constant, FileColumn, SourceFile
from spanlake.extraction.source.texts import type_at
from spanlake.extraction.source.widening import decoded_type

_UNKNOWN = Bounds(None)


def possible_groups(
    condition: Condition, schema: pa.Schema, file: SourceFile, metadata: pq.FileMetaData, held: pa.Schema
) -> tuple[bool, ...]:
    """Returns for each row group of a file whether a row may fulfil the condition.

    `schema` has the types of the source, and `held` those of the file.
    """
    return tuple(
        condition.may_hold(_group_bounds(schema, file, metadata, held, index)) for index in range(len(file.groups))
    )


def constant_bounds(schema: pa.Schema, file: SourceFile, path: Path) -> Bounds:
    """Returns what is known of a column from the place of its values: a constant of the file, or nothing."""
    place = file.columns.get(path[0])
    if not isinstance(place, Constant) or len(path) > 1:
        return _UNKNOWN
    if place.value is None:
        return Bounds(None, has_values=False)
    value = pa.array([place.value], pa.string()).cast(schema.field(path[0]).type)
    return Bounds(pa.concat_arrays([value, value]), has_nulls=False)


def _group_bounds(
    schema: pa.Schema, file: SourceFile, metadata: pq.FileMetaData, held: pa.Schema, group: int
) -> BoundsOf:
    chunks = {}
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(group).column(index)
        chunks[chunk.path_in_schema] = chunk

    def bounds(path: Path) -> Bounds:
        place = file.columns.get(path[0])
        if isinstance(place, Constant):
            return constant_bounds(schema, file, path)
        names = [place.name if isinstance(place, FileColumn) else path[0], *path[1:]]
        if names[0] not in held.names:
            return Bounds(None, has_values=False)
        chunk = chunks.get(".".join(names))
        return _UNKNOWN if chunk is None else _statistics(chunk, type_at(held, names), type_at(schema, path))

    return bounds


def _statistics(chunk: pq.ColumnChunkMetaData, held: pa.DataType | None, kind: pa.DataType | None) -> Bounds:
    found = chunk.statistics
    if found is None or held is None or kind is None:
        return _UNKNOWN
    nulls = found.null_count if found.has_null_count else None
    has_nulls, has_values = nulls != 0, nulls != chunk.num_values
    if not found.has_min_max or pa.types.is_floating(kind) and (found.min != found.min or found.max != found.max):
        return Bounds(None, has_nulls, has_values)
    try:
        ends = pa.array([found.min, found.max], decoded_type(held)).cast(decoded_type(kind))
    except (pa.ArrowException, ValueError, TypeError):  # pyarrow cannot decode these statistics
        return Bounds(None, has_nulls, has_values)
    return Bounds(ends, has_nulls, has_values)
