"""Rows that Iceberg's equality deletes delete are not read."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestWriter,
    ManifestWriterV2,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType

from spanlake.errors import UserError
from spanlake.extraction.source.changes import read_changes
from spanlake.extraction.source.equality import _Lookup
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.tables import TableName

URI = "iceberg:lake.web.pages"


class DeleteManifest(ManifestWriterV2):
    """Writes a manifest of delete files."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class DeleteAppend(_FastAppendFiles):
    """Adds delete files to a table."""

    def new_manifest_writer(self, spec: PartitionSpec) -> ManifestWriter:
        return DeleteManifest(spec, self.schema(), self.new_manifest_output(), self._snapshot_id, self._compression)


def delete(
    table: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], day: str | None = None, kind: str = "PARQUET"
) -> Path:
    """Commits an equality delete file, as a writer in another language would, and returns its path.

    It deletes the rows whose columns have the values of one of `rows`.
    """
    fields = [table.schema().find_field(column) for column in columns]
    schema = schema_to_pyarrow(Schema(*fields), include_field_ids=True)
    values = zip(*rows, strict=True) if rows else [[]] * len(columns)
    arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
    path = Path(table.location().removeprefix("file://")) / "data" / f"delete-{uuid.uuid4()}.parquet"
    pq.write_table(pa.table(arrays, pa.schema([field.with_nullable(True) for field in schema])), path)
    file = DataFile.from_args(
        content=DataFileContent.EQUALITY_DELETES,
        file_path=f"file://{path}",
        file_format=FileFormat[kind],
        partition=Record() if table.spec().is_unpartitioned() else Record(day),
        record_count=len(rows),
        file_size_in_bytes=path.stat().st_size,
        equality_ids=[field.field_id for field in fields],
    )
    file.spec_id = table.spec().spec_id
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.__class__ = DeleteAppend
        append.append_data_file(file)
    return path


def rows(*ids: int | None, **more: Any) -> pa.Table:
    values = {"id": pa.array(ids, pa.int64()), "text": pa.array([f"text {i}" for i in ids], pa.string())}
    return pa.table(values | {name: pa.array([value] * len(ids), pa.string()) for name, value in more.items()})


def read(uri: str = URI) -> list[dict[str, Any]]:
    source = read_source(uri, ("text",))
    reader = SourceHandle.of(source, ("text",)).open()
    found = [row for file in source.files for batch in reader.read(file.whole()) for row in batch.to_pylist()]
    assert len(found) == source.rows
    return sorted(found, key=lambda row: row["text"])


def ids(uri: str = URI) -> list[int | None]:
    return [row["id"] for row in read(uri)]


@pytest.fixture
def table(catalog: Catalog) -> Any:
    return catalog.create_table("web.pages", schema=rows(1).schema)


def test_a_delete_file_deletes_rows_of_older_data_files_only(table: Any) -> None:
    table.append(rows(1, 2, None))
    delete(table, ["id"], [[2], [None], [4]])
    table.append(rows(2, 3, 4))
    assert ids() == [1, 2, 3, 4]
    assert table.inspect.manifests().column("content").to_pylist() == [0, 1, 0]  # data, deletes, data
    first, second, _ = (snapshot.snapshot_id for snapshot in table.snapshots())
    assert ids(f"{URI}@{first}") == [1, 2, None] and ids(f"{URI}@{second}") == [1]
    delete(table, ["id"], [[1], [3]])
    delete(table, ["text"], [["text 4"], [None]])
    assert ids() == [2]
    delete(table, ["id"], [])
    assert ids() == [2]


def test_rows_of_a_long_file_are_looked_up_in_blocks(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanlake.extraction.source.tables._KEYS_AT_ONCE", 600)
    table.append(rows(*range(3000)))
    delete(table, ["id"], [[place] for place in range(0, 3000, 7)])
    assert sorted(ids()) == [place for place in range(3000) if place % 7]


def test_nulls_in_keys_of_several_columns_are_equal(catalog: Catalog) -> None:
    table = catalog.create_table("web.pages", schema=rows(1, lang="").schema)
    langs = pa.array(["en", None, None, "de"])
    table.append(rows(1, 1, None, None).append_column("lang", langs))
    delete(table, ["lang", "id"], [["en", None], [None, 1], ["de", None], ["de", 1], ["fr", 1]])
    assert [(row["id"], row["lang"]) for row in read()] == [(1, "en"), (None, None)]


def test_deletes_of_a_partition_leave_other_partitions_alone(catalog: Catalog) -> None:
    schema = Schema(*catalog.create_table("web.model", schema=rows(1, day="").schema).schema().fields)
    day = schema.find_field("day").field_id
    by_day = PartitionSpec(PartitionField(day, 1000, IdentityTransform(), "day"))
    table = catalog.create_table("web.pages", schema=schema, partition_spec=by_day)
    table.append(pa.concat_tables([rows(1, 2, day="a"), rows(1, 2, day="b")]))
    delete(table, ["id"], [[1]], day="a")
    assert [(row["id"], row["day"]) for row in read()] == [(1, "b"), (2, "a"), (2, "b")]
    with table.update_spec() as update:
        update.remove_field("day")
    table.append(rows(2, day="c"))
    delete(table, ["id"], [[2]])  # of no partition, so in all of them
    assert [(row["id"], row["day"]) for row in read()] == [(1, "b")]


def test_keys_whose_column_was_renamed_widened_or_dropped(catalog: Catalog) -> None:
    first = pa.schema([("id", pa.int32()), ("text", pa.string()), ("key", pa.string())])
    table = catalog.create_table("web.pages", schema=first)
    table.append(pa.table({"id": [1, 2, 3], "text": ["1", "2", "3"], "key": ["a", "b", "c"]}, schema=first))
    delete(table, ["id"], [[1]])
    delete(table, ["key"], [["c"]])
    with table.update_schema() as update:
        update.update_column("id", LongType())
        update.rename_column("id", "number")
        update.delete_column("key")
    table.append(pa.table({"number": [1, 4], "text": ["1", "4"]}))
    delete(table, ["number"], [[4]])
    assert [row["number"] for row in read()] == [1, 2]


def test_keys_of_other_types(catalog: Catalog) -> None:
    kinds = [pa.uuid(), pa.decimal128(10, 2), pa.timestamp("us", "UTC"), pa.date32(), pa.bool_(), pa.binary()]
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), *((f"c{i}", kind) for i, kind in enumerate(kinds))])
    table = catalog.create_table("web.pages", schema=schema)
    values = [[uuid.UUID(int=n).bytes, n, n, n, n == 1, bytes([n])] for n in (1, 2)]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*values, strict=True), kinds, strict=True)]
    for place in range(len(kinds)):
        table.append(pa.table([pa.array([10 * place, 10 * place + 1]), pa.array(["a", "b"]), *columns], schema=schema))
        delete(table, [f"c{place}"], [[values[0][place]]])
        assert 10 * place not in ids() and 10 * place + 1 in ids()


def test_changes_by_equality_deletes(table: Any) -> None:
    table.append(rows(*range(6)))
    delete(table, ["id"], [[1]])
    since = table.current_snapshot().snapshot_id
    delete(table, ["id"], [[1], [3]])
    table.append(rows(3, 7))
    name = TableName.parse(URI)
    assert name is not None
    source = read_changes(name, since, ("text",), None)
    reader = SourceHandle.of(source, ("text",)).open()
    found = [row for file in source.files for batch in reader.read(file.whole()) for row in batch.to_pylist()]
    assert [(row["_change_type"], row["id"]) for row in found] == [("insert", 7)]  # row 3 is back
    assert read_changes(name, table.current_snapshot().snapshot_id, ("text",), None).rows == 0


def test_deletes_that_cannot_be_read_are_refused(catalog: Catalog, table: Any) -> None:
    table.append(rows(1, 2, 3))
    delete(table, ["id"], [[1]], kind="AVRO")
    with pytest.raises(UserError, match="web.pages.* has equality deletes in AVRO files, .* rewrite its data files"):
        read()
    inner = pa.struct([("a", pa.int64())])
    nested = catalog.create_table("web.nested", schema=rows(1).schema.append(pa.field("in", inner)))
    nested.append(rows(1).append_column("in", pa.array([{"a": 1}], inner)))
    delete(nested, ["in.a"], [[1]])
    with pytest.raises(UserError, match="equality deletes by fields inside a struct .* rewrite its data files"):
        read("iceberg:lake.web.nested")
    gone = catalog.create_table("web.gone", schema=rows(1).schema)
    gone.append(rows(1))
    delete(gone, ["id"], [[1]]).unlink()
    with pytest.raises(UserError, match="The delete file file:.* cannot be read"):
        read("iceberg:lake.web.gone")


KEYS = st.lists(st.tuples(st.sampled_from([None, 1, 2]), st.sampled_from([None, "a", "b"]), st.integers(0, 3)))


@settings(deadline=None)
@given(KEYS, KEYS)
def test_the_newest_delete_of_each_key_is_found(deleted: list[tuple], asked: list[tuple]) -> None:
    def keys(found: list[tuple]) -> pa.Table:
        columns = [pa.array([key[0] for key in found], pa.int64()), pa.array([key[1] for key in found], pa.string())]
        return pa.table(columns, ["a", "b"])

    lookup = _Lookup(keys(deleted), np.array([key[2] for key in deleted], np.int64))
    expected = [max((key[2] for key in deleted if key[:2] == wanted[:2]), default=-1) for wanted in asked]
    assert lookup.newest(keys(asked)).tolist() == expected
