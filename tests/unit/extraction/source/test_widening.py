"""Files whose columns differ in type are read as one table without loss, or are refused."""

from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanlake.errors import UserError
from spanlake.extraction.output.plan import cut
from spanlake.extraction.source.model import Source
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.widening import widened


def read(directory: Path, *tables: pa.Table | dict[str, Any]) -> tuple[Source, list[dict[str, Any]]]:
    """Returns a source with a file for each table, and its rows. Tables without texts get a text column."""
    for number, columns in enumerate(tables):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        if "text" not in table.column_names:
            table = table.append_column("text", pa.array(["t"] * table.num_rows))
        pq.write_table(table, directory / f"{number}.parquet")
    source = read_source(str(directory), ("text",))
    reader = SourceHandle.of(source, ("text",)).open()
    units = [unit for file in source.files for unit in cut(file, 10)]
    return source, [row for unit in units for batch in reader.read(unit) for row in batch.to_pylist()]


WHOLE = {
    pa.int8(): [-(2**7), 2**7 - 1],
    pa.int16(): [-(2**15), 2**15 - 1],
    pa.int32(): [-(2**31), 2**31 - 1],
    pa.int64(): [-(2**63), 2**63 - 1],
    pa.uint8(): [0, 2**8 - 1],
    pa.uint16(): [0, 2**16 - 1],
    pa.uint32(): [0, 2**32 - 1],
    pa.uint64(): [0, 2**64 - 1],
}
FRACTIONS = {
    pa.float16(): [0.5, 65504.0],
    pa.float32(): [2.0**-149, 2.0**127],
    pa.float64(): [2.0**-1074, 2.0**1023],
    pa.decimal128(5, 2): [Decimal("-999.99"), Decimal("0.01")],
    pa.decimal128(38, 0): [Decimal(10**38 - 1)],
    pa.decimal128(38, 38): [Decimal(1).scaleb(-38)],
}
VALUES: dict[pa.DataType, list[Any]] = {
    **WHOLE,
    **FRACTIONS,
    pa.null(): [None],
    pa.bool_(): [True, False],
    pa.string(): ["é", ""],
    pa.large_string(): ["é", ""],
    pa.string_view(): ["é", "a text that no view holds inline"],
    pa.dictionary(pa.int8(), pa.string()): ["é", "é"],
    pa.dictionary(pa.int32(), pa.string(), ordered=True): ["é", "e"],
    pa.binary(): [b"\xff"],
    pa.large_binary(): [b"\xff"],
    pa.binary(2): [b"\xff\x00"],
    pa.binary(3): [b"abc"],
    pa.date32(): [date(9999, 12, 31)],
    pa.date64(): [date(1, 1, 1)],
    pa.timestamp("s"): [datetime(1970, 1, 1)],
    pa.timestamp("us"): [datetime(2024, 3, 10, 2, 30, 0, 1)],
    pa.timestamp("us", "UTC"): [datetime(2024, 3, 10, 8, 30, 0, 1, timezone.utc)],
    pa.timestamp("ms", "America/Chicago"): [datetime(2024, 3, 10, 9, 30, tzinfo=timezone.utc)],
    pa.time32("s"): [time(23, 59, 59)],
    pa.time64("us"): [time(23, 59, 59, 999_999)],
    pa.list_(pa.int16()): [[1, None], []],
    pa.large_list(pa.int64()): [[2**62]],
    pa.list_(pa.int32(), 2): [[1, 2]],
    pa.struct([("a", pa.int16())]): [{"a": 1}],
    pa.struct([("b", pa.list_(pa.struct([("c", pa.string())]))), ("a", pa.int64())]): [{"b": [{"c": "x"}], "a": 2**62}],
    pa.map_(pa.string(), pa.int16()): [[("k", 1)]],
    pa.map_(pa.large_string(), pa.int64()): [[("k", 2**62)]],
}


def same(found: Any, value: Any) -> bool:
    """Returns whether two values are the same, except that text may be bytes and a struct may have more nulls."""
    if isinstance(found, bytes) and isinstance(value, str):
        return found.decode() == value
    if isinstance(found, dict):
        return all(same(item, value[name]) if name in value else item is None for name, item in found.items())
    return bool(found == value)


@pytest.mark.parametrize("one", VALUES, ids=str)
def test_the_common_type_holds_every_value_of_both(one: pa.DataType) -> None:
    for other in VALUES:
        kind = widened(one, other)
        assert (kind is None) == (widened(other, one) is None)
        for original in (one, other) if kind else ():
            array = pa.array([*VALUES[original], None], original)
            assert all(map(same, array.cast(kind).to_pylist(), array.to_pylist())), (other, kind)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string_view(), pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int16(), pa.string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.null(), pa.dictionary(pa.int8(), pa.string())),
        (pa.int16(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.uint64(), pa.int64(), None),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int64(), pa.float64(), None),
        (pa.int64(), pa.decimal128(10, 2), pa.decimal128(21, 2)),
        (pa.decimal128(38, 2), pa.decimal128(38, 4), pa.decimal256(40, 4)),
        (pa.decimal128(10, 2), pa.float64(), None),
        (pa.timestamp("ms", "UTC"), pa.timestamp("us", "America/Chicago"), pa.timestamp("us", "UTC")),
        (pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("us", "Asia/Tokyo"), pa.timestamp("us", "Asia/Tokyo")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.bool_(), pa.int8(), None),
        (pa.string(), pa.int64(), None),
        (pa.uuid(), pa.binary(16), pa.binary(16)),
        (pa.list_(pa.null()), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.list_(pa.int8()), pa.string(), None),
    ],
    ids=str,
)
def test_types(one: pa.DataType, other: pa.DataType, common: pa.DataType | None) -> None:
    assert widened(one, other) == widened(other, one) == common


def test_files_of_several_tools_are_one_source(tmp_path: Path) -> None:
    """The files are from pandas, from Polars, and from Spark before and after a column and a field were added."""
    polars = {"text": pa.array(["p"], pa.large_string()), "n": pa.array([2**40]), "tag": pa.array(["b"])}
    pandas = {"text": ["q"], "n": pa.array([7], pa.int16()), "tag": pa.array(["a"]).dictionary_encode()}
    spark = {"text": ["r"], "n": pa.nulls(1), "tag": ["c"], "page": [{"url": "u"}], "when": [date(2024, 2, 29)]}
    later = {"text": ["s"], "n": pa.nulls(1), "tag": ["d"], "page": [{"url": "v", "size": 3}], "when": pa.nulls(1)}
    source, rows = read(tmp_path, polars, pandas, spark, later)
    page = pa.struct([("url", pa.string()), ("size", pa.int64())])
    assert source.schema == pa.schema(
        [("text", pa.large_string()), ("n", pa.int64()), ("tag", pa.string()), ("page", page), ("when", pa.date32())]
    )
    assert [row["text"] for row in rows] == ["p", "q", "r", "s"] and [row["n"] for row in rows] == [
        2**40,
        7,
        None,
        None,
    ]
    assert [row["tag"] for row in rows] == ["b", "a", "c", "d"] and rows[2]["when"] == date(2024, 2, 29)
    assert [row["page"] for row in rows] == [None, None, {"url": "u", "size": None}, {"url": "v", "size": 3}]


def test_a_column_that_a_file_lacks_can_be_null(tmp_path: Path) -> None:
    sure = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    source, rows = read(tmp_path, pa.table({"id": [1], "text": ["t"]}, schema=sure), {"text": ["u"]})
    assert [field.nullable for field in source.schema] == [True, True] and [row["id"] for row in rows] == [1, None]
    pq.write_table(pa.Table.from_pylist(rows, source.schema), tmp_path / "written")
    assert pq.read_table(tmp_path / "written").to_pylist() == rows


def test_columns_that_do_not_fit_are_named_together(tmp_path: Path) -> None:
    first = {"id": [1], "ok": pa.array([1], pa.int8()), "page": [{"url": "u", "size": 1}], "at": [date(2024, 1, 1)]}
    second = {"id": pa.nulls(1), "ok": [2], "page": [{"url": "v"}], "at": [True]}
    third = {"id": ["3"], "ok": [3], "page": [{"size": "4"}], "at": ["2024"]}
    with pytest.raises(UserError) as caught:
        read(tmp_path, first, second, third)
    assert str(caught.value) == (
        "The columns at is date32[day] in 0.parquet and bool in 1.parquet; "
        "id is int64 in 0.parquet and string in 2.parquet; "
        "page.size is int64 in 0.parquet and string in 2.parquet: "
        "give each of them one type, or extract the files to two outputs."
    )


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_times_that_nanoseconds_cannot_hold(tmp_path: Path, statistics: bool, inside: bool) -> None:
    """Microseconds beside nanoseconds are read, unless a time is beyond the years that nanoseconds hold."""

    def write(name: str, unit: str, value: datetime | None) -> None:
        kind = pa.timestamp(unit)
        at = pa.array([{"at": value}], pa.struct([("at", kind)])) if inside else pa.array([value], kind)
        table = pa.table({"text": ["t"], "at": at})
        pq.write_table(table, tmp_path / name, write_statistics=statistics, version="2.6")

    write("a.parquet", "us", datetime(2261, 12, 31))
    write("b.parquet", "ns", datetime(2024, 1, 1))
    write("c.parquet", "ms", None)
    source = read_source(str(tmp_path), ("text",))
    reader = SourceHandle.of(source, ("text",)).open()
    assert sum(batch.num_rows for file in source.files for batch in reader.read(file.whole())) == 3
    write("d.parquet", "us", datetime(2263, 1, 1))
    with pytest.raises(UserError, match=r"at has times before 1678 or after 2261 in .*d\.parquet, and another"):
        read_source(str(tmp_path), ("text",))
    read_source(str(tmp_path / "d.parquet"), ("text",))
    (tmp_path / "b.parquet").unlink()
    read_source(str(tmp_path), ("text",))
