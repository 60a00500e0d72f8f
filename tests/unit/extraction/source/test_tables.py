"""Delta and Iceberg tables as sources: the rows of one snapshot, as the table's own library reads them."""

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.types import LongType, StringType
from pyiceberg.utils.config import Config

from spanlake.errors import UserError
from spanlake.extraction.output.plan import cut
from spanlake.extraction.source.model import Source
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.tables import TableName, pinned


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A SQL catalogue on this machine, known to pyiceberg as `lake`."""
    (tmp_path / "warehouse").mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # which has read the environment when imported
    catalog = load_catalog("lake")
    catalog.create_namespace("web")
    return catalog


def rows_of(source: Source, unit_rows: int = 2) -> list[dict[str, Any]]:
    reader = SourceHandle.of(source, "text").open()
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
    source = read_source(f"delta:{path}", "text")
    assert source.uri == f"delta:{path}@2" and source.rows == 6
    expected = table.to_pyarrow_table().to_pylist()
    assert rows_of(source) == sorted(expected, key=lambda row: row["id"])
    assert {row["day"] for row in expected} == {"a", "b c/d", None}

    old = read_source(f"delta:{path}@0", "text")
    assert old.schema.names == ["id", "text", "day"] and [row["id"] for row in rows_of(old)] == [1, 2]


def test_delta_types_of_partitions(tmp_path: Path) -> None:
    table = rows(1).append_column("n", pa.array([7], pa.int32()))
    table = table.append_column("at", pa.array([1], pa.date32())).append_column("ok", pa.array([True]))
    write_deltalake(tmp_path / "table", table, partition_by=["n", "at", "ok"])
    expected = DeltaTable(tmp_path / "table").to_pyarrow_table().to_pylist()
    assert rows_of(read_source(f"delta:{tmp_path}/table", "text")) == expected


def test_a_delta_table_with_deletion_vectors_is_refused(tmp_path: Path) -> None:
    """The third row is deleted by a vector that stands in the log itself, as the protocol describes it."""
    import pyroaring

    write_deltalake(tmp_path / "table", rows(1, 2, 3))
    log = tmp_path / "table" / "_delta_log" / "00000000000000000000.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    bitmap = struct.pack("<IqI", 1681511377, 1, 0) + pyroaring.BitMap([2]).serialize()
    vector = {"storageType": "i", "pathOrInlineDv": z85(bitmap), "sizeInBytes": len(bitmap), "cardinality": 1}
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "add" in action:
            action["add"]["deletionVector"] = vector
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))
    with pytest.raises(UserError, match="has deletion vectors: run REORG TABLE"):
        read_source(f"delta:{tmp_path}/table", "text")


def z85(content: bytes) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    content += bytes(-len(content) % 4)
    blocks = [int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4)]
    return "".join(digits[block // 85**power % 85] for block in blocks for power in (4, 3, 2, 1, 0))


def test_delta_tables_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_deltalake(path, rows(1))
    with pytest.raises(UserError, match=r"delta:.*none cannot be read"):
        read_source(f"delta:{tmp_path}/none", "text")
    with pytest.raises(UserError, match=r"table@7 cannot be read"):
        read_source(f"delta:{path}@7", "text")
    with pytest.raises(UserError, match=r"no column called body.*\(text\)"):
        read_source(f"delta:{path}", "body")
    with pytest.raises(UserError, match="id holds int64"):
        read_source(f"delta:{path}", "id")
    write_deltalake(tmp_path / "found", rows(1, error="none"))
    with pytest.raises(UserError, match="already has a column called error"):
        read_source(f"delta:{tmp_path}/found", "text")
    next(path.glob("*.parquet")).unlink()
    with pytest.raises(UserError, match="was the table vacuumed"):
        read_source(f"delta:{path}", "text")


# --- Iceberg ------------------------------------------------------------------------------------------------------


def evolve(catalog: Catalog) -> Any:
    """A table with a file from before its columns were renamed, dropped, widened and added, and one from after."""
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
        update.add_column("old", StringType())  # another column under the old one's name
    second = table.schema().as_arrow()
    row = {"id": 3, "text": "z", "in": {"a": 2, "b": "n"}, "old": "new"}
    table.append(pa.Table.from_pylist([row], schema=second))
    return table


def test_iceberg_rows_are_those_that_its_library_reads(catalog: Catalog) -> None:
    table = evolve(catalog)
    source = read_source("iceberg:lake.web.pages", "text")
    assert source.uri == f"iceberg:lake.web.pages@{table.current_snapshot().snapshot_id}"
    assert source.schema.field("text").type == pa.string() and source.schema.field("id").type == pa.int64()
    expected = table.scan().to_arrow().to_pylist()
    assert rows_of(source) == sorted(expected, key=lambda row: row["id"])
    assert [row["old"] for row in rows_of(source)] == [None, None, "new"]

    first = table.snapshots()[0].snapshot_id
    old = read_source(f"iceberg:lake.web.pages@{first}", "body")
    assert old.schema.names == ["id", "body", "old", "in"] and rows_of(old)[0]["old"] == "p"


def test_an_inner_field_that_was_renamed_is_refused(catalog: Catalog) -> None:
    table = evolve(catalog)
    with table.update_schema() as update:
        update.rename_column("in.a", "c")
    table.append(pa.Table.from_pylist([], schema=table.schema().as_arrow()))
    with pytest.raises(UserError, match="fields inside the column in have other names in"):
        read_source("iceberg:lake.web.pages", "text")


def test_files_that_another_tool_wrote_have_columns_by_name(catalog: Catalog, tmp_path: Path) -> None:
    table = catalog.create_table("web.pages", schema=rows(1).schema)
    path = tmp_path / "warehouse" / "web" / "pages" / "data" / "added.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(1, 2).select(["text", "id"]), path)
    table.add_files([f"file://{path}"])
    assert rows_of(read_source("iceberg:lake.web.pages", "text")) == rows(1, 2).to_pylist()


def test_iceberg_row_deletes_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    table = catalog.create_table("web.pages", schema=rows(1).schema)
    table.append(rows(1, 2, 3))
    data = next(iter(table.scan().plan_files())).file
    path = tmp_path / "warehouse" / "deletes.parquet"
    pq.write_table(pa.table({"file_path": [data.file_path], "pos": pa.array([1], pa.int64())}), path)
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{path}",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=path.stat().st_size,
    )
    deletes.spec_id = table.spec().spec_id
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(deletes)
    assert [task.delete_files for task in table.refresh().scan().plan_files()][0]
    with pytest.raises(UserError, match="has deleted rows in its data files"):
        read_source("iceberg:lake.web.pages", "text")


def test_iceberg_tables_that_cannot_be_read(catalog: Catalog) -> None:
    catalog.create_table("web.empty", schema=rows(1).schema)
    with pytest.raises(UserError, match="names no table: give iceberg:CATALOG.NAMESPACE.TABLE"):
        read_source("iceberg:pages", "text")
    with pytest.raises(UserError, match="The Iceberg catalogue nowhere cannot be loaded"):
        read_source("iceberg:nowhere.web.pages", "text")
    with pytest.raises(UserError, match="iceberg:lake.web.none cannot be read"):
        read_source("iceberg:lake.web.none", "text")
    with pytest.raises(UserError, match="has no snapshot yet"):
        read_source("iceberg:lake.web.empty", "text")
    with pytest.raises(UserError, match="@5 has no such snapshot"):
        read_source("iceberg:lake.web.empty@5", "text")


# --- names --------------------------------------------------------------------------------------------------------


def test_names_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert TableName.parse("s3://bucket/delta:x") is None and TableName.parse("delta.parquet") is None
    assert TableName.parse("delta:lake/t@12") == TableName("delta", "/lake/t", 12)
    assert TableName.parse("delta:s3://b/t@x") == TableName("delta", "s3://b/t@x")
    assert str(TableName.parse("iceberg:c.n.t@99")) == "iceberg:c.n.t@99"


def test_an_output_that_was_begun_pins_the_version() -> None:
    begun = "delta:/lake/t@3"
    assert pinned("delta:/lake/t", begun) == pinned("delta:/lake/t@3", begun) == begun
    assert pinned("delta:/lake/t", None) == "delta:/lake/t"
    assert pinned("delta:/lake/other", begun) == "delta:/lake/other"
    assert pinned("/lake/t", begun) == "/lake/t" and pinned("delta:/lake/t@5", "/lake/t") == "delta:/lake/t@5"
    with pytest.raises(UserError, match="begun with delta:/lake/t@3, and delta:/lake/t@4 is asked"):
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
    source = read_source("iceberg:lake.web.types", "text")
    assert source.schema.equals(schema)
    rows = rows_of(source)
    assert rows[0]["map"] == [("k", ["v"])] and rows[0]["flags"] == [{"on": True}] and rows[0]["raw"] == b"\xff"
    assert [name for name, value in rows[1].items() if value is not None] == [
        "id",
        "flags",
    ]  # pyiceberg writes no null list
