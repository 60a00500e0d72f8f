"""Delta and Iceberg tables as sources give the same rows of a snapshot as the table's own library."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta import delete_from_delta
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, StringType

from spanlake.errors import UserError
from spanlake.extraction.output.plan import cut
from spanlake.extraction.source.model import Source
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.tables import TableName, pinned


def rows_of(source: Source, unit_rows: int = 2) -> list[dict[str, Any]]:
    reader = SourceHandle.of(source, ("text",)).open()
    units = [unit for file in source.files for unit in cut(file, unit_rows)]
    rows = [row for unit in units for batch in reader.read(unit) for row in batch.to_pylist()]
    assert all(list(row) == source.schema.names for row in rows)
    return sorted(rows, key=lambda row: row["id"])


def rows(*ids: int, **more: Any) -> pa.Table:
    values = {"id": pa.array(ids, pa.int64()), "text": pa.array([f"text {i}" for i in ids], pa.string())}
    return pa.table(values | {name: [value] * len(ids) for name, value in more.items()})


# --- Delta --------------------------------------------------------------------------------------------------------


def test_delta_rows_are_those_that_its_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_deltalake(path, rows(1, 2, day="a"), partition_by=["day"])
    write_deltalake(path, rows(3, 4, 5, day="b c/d", score=1.5), mode="append", schema_mode="merge")
    nothing = pa.array([None], pa.string())
    write_deltalake(path, rows(6).append_column("day", nothing), mode="append", schema_mode="merge")
    table = DeltaTable(path)
    source = read_source(f"delta:{path}", ("text",))
    assert source.uri == f"delta:{path}@2" and source.rows == 6
    expected = table.to_pyarrow_table().to_pylist()
    assert rows_of(source) == sorted(expected, key=lambda row: row["id"])
    assert {row["day"] for row in expected} == {"a", "b c/d", None}

    old = read_source(f"delta:{path}@0", ("text",))
    assert old.schema.names == ["id", "text", "day"] and [row["id"] for row in rows_of(old)] == [1, 2]


def test_delta_types_of_partitions(tmp_path: Path) -> None:
    table = rows(1).append_column("n", pa.array([7], pa.int32()))
    table = table.append_column("at", pa.array([1], pa.date32())).append_column("ok", pa.array([True]))
    write_deltalake(tmp_path / "table", table, partition_by=["n", "at", "ok"])
    expected = DeltaTable(tmp_path / "table").to_pyarrow_table().to_pylist()
    assert rows_of(read_source(f"delta:{tmp_path}/table", ("text",))) == expected


@pytest.mark.parametrize("name", ["table", "a table+100%"])
def test_rows_of_delta_deletion_vectors_are_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_deltalake(path, rows(1, 2, 3, 4, day="x y/z"), partition_by=["day"])
    delete_from_delta(path, 0, [1, 3])
    write_deltalake(tmp_path / "more", rows(5, 6, day="b"), partition_by=["day"])  # its file has no vector
    shutil.copytree(tmp_path / "more" / "day=b", path / "day=b")
    added = [json.loads(line) for line in (tmp_path / "more" / "_delta_log" / f"{0:020}.json").read_text().splitlines()]
    added = [action for action in added if "add" in action]
    (path / "_delta_log" / f"{1:020}.json").write_text("".join(json.dumps(action) + "\n" for action in added))
    source = read_source(f"delta:{path}", ("text",))
    assert source.rows == 4 and [row["id"] for row in rows_of(source)] == [1, 3, 5, 6]
    assert [row["id"] for row in rows_of(read_source(f"delta:{path}@0", ("text",)))] == [1, 3]


def test_a_delta_file_may_have_no_row_left(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", rows(1, 2))
    delete_from_delta(tmp_path / "table", 0, [0, 1])
    source = read_source(f"delta:{tmp_path}/table", ("text",))
    assert source.rows == 0 and rows_of(source) == []


def test_delta_tables_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_deltalake(path, rows(1))
    with pytest.raises(UserError, match=r"delta:.*none cannot be read"):
        read_source(f"delta:{tmp_path}/none", ("text",))
    with pytest.raises(UserError, match=r"table@7 cannot be read"):
        read_source(f"delta:{path}@7", ("text",))
    with pytest.raises(UserError, match=r"no column called body.*\(text\)"):
        read_source(f"delta:{path}", ("body",))
    with pytest.raises(UserError, match="id holds int64"):
        read_source(f"delta:{path}", ("id",))
    write_deltalake(tmp_path / "found", rows(1, error="none"))
    with pytest.raises(UserError, match="already has a column called error"):
        read_source(f"delta:{tmp_path}/found", ("text",))
    next(path.glob("*.parquet")).unlink()
    with pytest.raises(UserError, match="was the table vacuumed"):
        read_source(f"delta:{path}", ("text",))


# --- Iceberg ------------------------------------------------------------------------------------------------------


def evolve(catalog: Catalog) -> Any:
    """Returns a table with one file from before and one from after columns were renamed, dropped, widened and added."""
    inner = pa.struct([("a", pa.int32())])
    first = pa.schema([("id", pa.int32()), ("body", pa.string()), ("old", pa.string()), ("in", inner)])
    table = catalog.create_table("web.pages", schema=first)
    table.append(pa.table({"id": [1, 2], "body": ["x", None], "old": ["p", "q"], "in": [{"a": 1}, None]}, schema=first))
    with table.update_schema() as update:
        update.rename_column("body", "text")
        update.delete_column("old")
        update.update_column("id", LongType())
        update.add_column(("in", "b"), StringType())
    with table.update_schema() as update:
        update.add_column("old", StringType())  # a new column with the name of the old one
    second = table.schema().as_arrow()
    row = {"id": 3, "text": "z", "in": {"a": 2, "b": "n"}, "old": "new"}
    table.append(pa.Table.from_pylist([row], schema=second))
    return table


def test_iceberg_rows_are_those_that_its_library_reads(catalog: Catalog) -> None:
    table = evolve(catalog)
    source = read_source("iceberg:lake.web.pages", ("text",))
    assert source.uri == f"iceberg:lake.web.pages@{table.current_snapshot().snapshot_id}"
    assert source.schema.field("text").type == pa.string() and source.schema.field("id").type == pa.int64()
    expected = table.scan().to_arrow().to_pylist()
    assert rows_of(source) == sorted(expected, key=lambda row: row["id"])
    assert [row["old"] for row in rows_of(source)] == [None, None, "new"]

    first = table.snapshots()[0].snapshot_id
    old = read_source(f"iceberg:lake.web.pages@{first}", ("body",))
    assert old.schema.names == ["id", "body", "old", "in"] and rows_of(old)[0]["old"] == "p"


def test_an_inner_field_that_was_renamed_is_refused(catalog: Catalog) -> None:
    table = evolve(catalog)
    with table.update_schema() as update:
        update.rename_column("in.a", "c")
    table.append(pa.Table.from_pylist([], schema=table.schema().as_arrow()))
    with pytest.raises(UserError, match="fields inside the column in have other names in"):
        read_source("iceberg:lake.web.pages", ("text",))


def test_files_that_another_tool_wrote_have_columns_by_name(catalog: Catalog, tmp_path: Path) -> None:
    table = catalog.create_table("web.pages", schema=rows(1).schema)
    path = tmp_path / "warehouse" / "web" / "pages" / "data" / "added.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(1, 2).select(["text", "id"]), path)
    table.add_files([f"file://{path}"])
    assert rows_of(read_source("iceberg:lake.web.pages", ("text",))) == rows(1, 2).to_pylist()


def add_delete_file(table: Any, path: Path, kind: FileFormat) -> None:
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{path}",
        file_format=kind,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=path.stat().st_size,
    )
    deletes.spec_id = table.spec().spec_id
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(deletes)


def position_deletes(path: Path, rows: list[tuple[str, int]]) -> None:
    paths, places = zip(*rows, strict=True)
    pq.write_table(pa.table({"file_path": paths, "pos": pa.array(places, pa.int64())}), path)


def puffin(path: Path, data_file: str, places: list[int]) -> None:
    """Returns a file with one deletion vector, as the specifications of Puffin and Iceberg 3 describe it."""
    import pyroaring

    vector = (1).to_bytes(8, "little") + (0).to_bytes(4, "little") + pyroaring.BitMap(places).serialize()
    checked = b"\xd1\xd3\x39\x64" + vector
    blob = len(checked).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")
    about = {"type": "deletion-vector-v1", "fields": [], "snapshot-id": -1, "sequence-number": -1}
    about |= {"offset": 4, "length": len(blob), "properties": {"referenced-data-file": data_file, "cardinality": "1"}}
    footer = json.dumps({"blobs": [about]}).encode()
    tail = b"PFA1" + footer + len(footer).to_bytes(4, "little") + bytes(4) + b"PFA1"
    path.write_bytes(b"PFA1" + blob + tail)


def test_rows_of_iceberg_position_deletes_are_not_read(catalog: Catalog, tmp_path: Path) -> None:
    table = catalog.create_table("web.pages", schema=rows(1).schema)
    table.append(rows(1, 2, 3))
    table.append(rows(4, 5, 6))
    later, first = (task.file.file_path for task in table.scan().plan_files())
    position_deletes(tmp_path / "warehouse" / "a.parquet", [(first, 1), (later, 0), ("file:///another", 2)])
    add_delete_file(table, tmp_path / "warehouse" / "a.parquet", FileFormat.PARQUET)
    position_deletes(tmp_path / "warehouse" / "b.parquet", [(first, 0), (first, 1)])
    add_delete_file(table, tmp_path / "warehouse" / "b.parquet", FileFormat.PARQUET)
    table.append(rows(7))
    source = read_source("iceberg:lake.web.pages", ("text",))
    expected = table.scan().to_arrow().to_pylist()
    assert rows_of(source) == sorted(expected, key=lambda row: row["id"]) and source.rows == 4
    assert [row["id"] for row in expected if row["id"] < 4] == [3]
    before = read_source(f"iceberg:lake.web.pages@{table.snapshots()[1].snapshot_id}", ("text",))
    assert [row["id"] for row in rows_of(before)] == [1, 2, 3, 4, 5, 6]


def test_rows_of_iceberg_deletion_vectors_are_not_read(catalog: Catalog, tmp_path: Path) -> None:
    table = catalog.create_table("web.pages", schema=rows(1).schema)
    table.append(rows(1, 2, 3, 4))
    (task,) = table.scan().plan_files()
    path = tmp_path / "warehouse" / "vectors.puffin"
    puffin(path, task.file.file_path, [0, 2])
    add_delete_file(table, path, FileFormat.PUFFIN)
    assert [row["id"] for row in rows_of(read_source("iceberg:lake.web.pages", ("text",)))] == [2, 4]


def test_position_deletes_that_cannot_be_read_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "warehouse" / "deletes.parquet"
    path.touch()
    table = catalog.create_table("web.orc", schema=rows(1).schema)
    table.append(rows(1, 2, 3))
    add_delete_file(table, path, FileFormat.ORC)
    with pytest.raises(UserError, match="web.orc has position deletes in orc files, .* rewrite its data files"):
        read_source("iceberg:lake.web.orc", ("text",))
    table = catalog.create_table("web.gone", schema=rows(1).schema)
    table.append(rows(1, 2, 3))
    position_deletes(path, [("file:///another", 0)])
    add_delete_file(table, path, FileFormat.PARQUET)
    path.unlink()
    with pytest.raises(UserError, match="iceberg:lake.web.gone cannot be read"):
        read_source("iceberg:lake.web.gone", ("text",))


def test_iceberg_tables_that_cannot_be_read(catalog: Catalog) -> None:
    catalog.create_table("web.empty", schema=rows(1).schema)
    with pytest.raises(UserError, match="does not name a table: give iceberg:CATALOG.NAMESPACE.TABLE"):
        read_source("iceberg:pages", ("text",))
    with pytest.raises(UserError, match="The Iceberg catalogue nowhere cannot be loaded"):
        read_source("iceberg:nowhere.web.pages", ("text",))
    with pytest.raises(UserError, match="iceberg:lake.web.none cannot be read"):
        read_source("iceberg:lake.web.none", ("text",))
    with pytest.raises(UserError, match="has no snapshot yet"):
        read_source("iceberg:lake.web.empty", ("text",))
    with pytest.raises(UserError, match="@5 has no such snapshot"):
        read_source("iceberg:lake.web.empty@5", ("text",))


# --- names --------------------------------------------------------------------------------------------------------


def test_names_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert TableName.parse("s3://bucket/delta:x") is None and TableName.parse("delta.parquet") is None
    assert TableName.parse("delta:lake/t@12") == TableName("delta", "/lake/t", 12)
    assert TableName.parse("delta:s3://b/t@x") == TableName("delta", "s3://b/t@x")
    assert str(TableName.parse("iceberg:c.n.t@99")) == "iceberg:c.n.t@99"


def test_an_existing_output_pins_the_version() -> None:
    begun = "delta:/lake/t@3"
    assert pinned("delta:/lake/t", begun) == pinned("delta:/lake/t@3", begun) == begun
    assert pinned("delta:/lake/t", None) == "delta:/lake/t"
    assert pinned("delta:/lake/other", begun) == "delta:/lake/other"
    assert pinned("/lake/t", begun) == "/lake/t" and pinned("delta:/lake/t@5", "/lake/t") == "delta:/lake/t@5"
    with pytest.raises(UserError, match="began with delta:/lake/t@3, and delta:/lake/t@4 is requested"):
        pinned("delta:/lake/t@4", begun)


def test_types_that_iceberg_has(catalog: Catalog) -> None:
    kinds = {
        "text": pa.string(),
        "at": pa.timestamp("us", "UTC"),
        "clock": pa.time64("us"),
        "map": pa.map_(pa.string(), pa.list_(pa.string())),
        "price": pa.decimal128(10, 2),
        "raw": pa.binary(),
        "flags": pa.list_(pa.struct([("on", pa.bool_())])),
    }
    schema = pa.schema([("id", pa.int64()), *kinds.items()])
    table = catalog.create_table("web.types", schema=schema)
    values = {
        "text": "t",
        "at": 1,
        "clock": 2,
        "map": {"k": ["v"]},
        "price": 3,
        "raw": b"\xff",
        "flags": [{"on": True}],
    }
    table.append(pa.Table.from_pylist([{"id": 1, **values}, {"id": 2}], schema=schema))
    source = read_source("iceberg:lake.web.types", ("text",))
    assert source.schema.equals(schema)
    rows = rows_of(source)
    assert rows[0]["map"] == [("k", ["v"])] and rows[0]["flags"] == [{"on": True}] and rows[0]["raw"] == b"\xff"
    assert [name for name, value in rows[1].items() if value is not None] == [
        "id",
        "flags",
    ]  # pyiceberg does not write null lists
