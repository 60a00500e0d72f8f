"""Partitioned tables, merging by key, tables that gain columns, and plain Parquet files. Real tables, without Ray."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog
from pyiceberg.transforms import BucketTransform, DayTransform
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError
from spanlake.extraction.output import publish as publish_module
from spanlake.extraction.output.dataset import Apart
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare
from spanlake.extraction.output.merge import check_source_keys, replaced_keys, without_replaced
from spanlake.extraction.output.publish import open_target, publish
from spanlake.extraction.output.target import TableOptions, Target
from spanlake.extraction.source.changes import read_changes
from spanlake.extraction.source.model import CHANGE, Source
from spanlake.extraction.source.open import read_source
from spanlake.extraction.source.tables import TableName
from spanlake.inference.settings import Settings
from spanlake.storage import locate

KINDS = ("delta", "iceberg")
Read = Callable[[], list[dict[str, Any]]]


class Whole:
    """Finds one entity: the whole text."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        return ([Entity(0, len(text), text, "a", 0.5)] for text, _ in requests)


@pytest.fixture(params=KINDS)
def table(request: pytest.FixtureRequest, tmp_path: Path, catalog: Catalog) -> tuple[str, Read]:
    """Returns the name of a table that does not exist yet, and a function that reads its rows, sorted by id."""

    def read() -> list[dict[str, Any]]:
        if request.param == "delta":
            found = DeltaTable(tmp_path / "found").to_pyarrow_table()
        else:
            found = catalog.load_table("web.found").scan().to_arrow()
        return sorted(found.to_pylist(), key=lambda row: row["id"])

    return (f"delta:{tmp_path}/found" if request.param == "delta" else "iceberg:lake.web.found"), read


def rows(*ids: int, text: str = "Row", **more: Any) -> pa.Table:
    columns = {"id": pa.array(ids, pa.int64()), "text": pa.array([f"{text} {i}" for i in ids], pa.string())}
    return pa.table(columns | {name: [value] * len(ids) for name, value in more.items()})


def extract(source: Source, output: Path, unit_rows: int = 4) -> Ledger:
    labels = Settings.make(["a"])
    request = Request(source, locate(str(output)), ("text",), labels, "m", "f", "auto", unit_rows, Layout())
    ledger = prepare(request)
    run_units(request, ledger, Whole())
    return ledger


def extract_rows(found: pa.Table, directory: Path, unit_rows: int = 4) -> Ledger:
    (directory / "in").mkdir(parents=True)
    pq.write_table(found, directory / "in" / "a.parquet")
    return extract(read_source(str(directory / "in"), ("text",)), directory / "out", unit_rows)


def opened(name: str, ledger: Ledger, **options: Any) -> Target:
    return open_target(name, ledger.schema, options=TableOptions(**options))


# --- merging ------------------------------------------------------------------------------------------------------


def test_rows_with_a_known_key_are_replaced_and_the_others_added(tmp_path: Path, table: tuple[str, Read]) -> None:
    name, read = table
    first = extract_rows(rows(*range(8)), tmp_path / "first")
    assert publish(first, opened(name, first, merge_on=("id",))) == 2
    second = extract_rows(rows(6, 7, 8, text="New"), tmp_path / "second")
    target = opened(name, second, merge_on=("id",))
    assert publish(second, target) == 1 and publish(second, target) == 0
    assert [row["text"] for row in read()] == [f"Row {i}" for i in range(6)] + ["New 6", "New 7", "New 8"]
    assert read()[7]["entities"][0]["text"] == "New 7"


def test_a_key_of_two_columns(tmp_path: Path, table: tuple[str, Read]) -> None:
    name, read = table
    first = extract_rows(rows(1, 2, lang="en"), tmp_path / "first")
    publish(first, opened(name, first, merge_on=("id", "lang")))
    second = extract_rows(
        pa.concat_tables([rows(2, 3, lang="en", text="New"), rows(1, lang="fr")]), tmp_path / "second"
    )
    publish(second, opened(name, second, merge_on=("id", "lang")))
    found = sorted((row["id"], row["lang"], row["text"]) for row in read())
    assert found == [(1, "en", "Row 1"), (1, "fr", "Row 1"), (2, "en", "New 2"), (3, "en", "New 3")]


def test_changes_of_a_table_reach_another_one(tmp_path: Path, table: tuple[str, Read]) -> None:
    """Added rows are added, changed ones replaced, deleted ones deleted. The table has no column that says which."""
    name, read = table
    source = tmp_path / "source"
    write_deltalake(source, rows(*range(10)))

    def night(number: int, since: int | None) -> None:
        found = TableName.parse(f"delta:{source}")
        assert found
        ledger = extract(read_changes(found, since, ("text",), None), tmp_path / f"night{number}")
        target = opened(name, ledger, merge_on=("id",))
        publish(ledger, target)
        assert publish(ledger, target) == 0

    night(1, None)
    DeltaTable(source).update(updates={"text": "'New'"}, predicate="id = 3")
    DeltaTable(source).delete("id = 7")
    write_deltalake(source, rows(10, 11), mode="append")
    night(2, 0)
    expected = sorted(DeltaTable(source).to_pyarrow_table().to_pylist(), key=lambda row: row["id"])
    assert [{"id": row["id"], "text": row["text"]} for row in read()] == expected
    assert CHANGE not in read()[0]
    night(3, DeltaTable(source).version())  # nothing has changed
    assert len(read()) == 11


def test_two_that_merge_at_the_same_time_both_reach_the_table(
    tmp_path: Path, table: tuple[str, Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second commits while the first writes its rows. The first must read the table again."""
    name, read = table
    before = extract_rows(rows(*range(6)), tmp_path / "before")
    publish(before, opened(name, before, merge_on=("id",)))
    one = extract_rows(rows(0, 1, 6, text="One"), tmp_path / "one")
    other = extract_rows(rows(1, 2, 7, text="Other"), tmp_path / "other")
    original, calls = publish_module._rows, []

    def overtaken(ledger: Ledger, *arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in original(ledger, *arguments):
            if ledger is one:
                calls.append(1)
                if len(calls) == 2:  # the first call reads the keys
                    with ThreadPoolExecutor(1) as pool:
                        pool.submit(lambda: publish(other, opened(name, other, merge_on=("id",)))).result()
            yield batch

    monkeypatch.setattr(publish_module, "_rows", overtaken)
    assert publish(one, opened(name, one, merge_on=("id",))) == 1
    texts = {row["id"]: row["text"] for row in read()}
    assert len(read()) == 8 and texts[0] == "One 0" and texts[2] == "Other 2" and texts[7] == "Other 7"
    assert texts[1] == "One 1" and texts[6] == "One 6"  # the last to commit


def test_keys_that_do_not_name_one_row_are_refused(tmp_path: Path) -> None:
    twice = rows(1, 2, 2)
    pq.write_table(twice, tmp_path / "a.parquet")
    source = read_source(str(tmp_path), ("text",))
    with pytest.raises(UserError, match="--merge-on id is 2 in two rows: choose a key that each row has for itself"):
        check_source_keys(source, ("text",), ("id",))
    pq.write_table(rows(1).append_column("key", pa.nulls(1, pa.int64())), tmp_path / "a.parquet")
    source = read_source(str(tmp_path), ("text",))
    with pytest.raises(UserError, match="--merge-on id,key is null in a row"):
        check_source_keys(source, ("text",), ("id", "key"))
    check_source_keys(source, ("text",), ("id",))
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pytest.raises(UserError, match="--merge-on key is not a column of the output: give one of id, text"):
        open_target(f"delta:{tmp_path}/found", schema, options=TableOptions(merge_on=("key",)))
    ledger = extract_rows(twice, tmp_path / "twice")
    with pytest.raises(ShortfallError, match="--merge-on id is 2 in two rows"):
        publish(ledger, opened(f"delta:{tmp_path}/found", ledger, merge_on=("id",)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_a_merge_has_one_row_for_each_key(changes: list[tuple[int, bool]]) -> None:
    added: set[int] = set()
    valid = [(key, new) for key, new in changes if not (new and (key in added or added.add(key)))]  # type: ignore[func-returns-value]
    batches = [pa.record_batch({"id": pa.array([key]), CHANGE: ["insert" if new else "delete"]}) for key, new in valid]
    left = [
        row for batch in without_replaced(batches, ["id"], replaced_keys(batches, ["id"])) for row in batch.to_pylist()
    ]
    assert sorted(row["id"] for row in left) == sorted({key for key, _ in valid})
    assert {row["id"] for row in left if row[CHANGE] == "insert"} == added


# --- partitions and columns ---------------------------------------------------------------------------------------


def test_a_new_table_has_the_partitions_that_are_asked_for(tmp_path: Path, table: tuple[str, Read]) -> None:
    name, read = table
    content = pa.concat_tables([rows(1, 2, lang="en"), rows(3, lang="a b/c"), rows(4, 5, lang="fr")])
    ledger = extract_rows(content, tmp_path / "first")
    publish(ledger, opened(name, ledger, partition_by=("lang",)))
    assert [(row["id"], row["lang"]) for row in read()] == [(1, "en"), (2, "en"), (3, "a b/c"), (4, "fr"), (5, "fr")]
    paths = [path for path in tmp_path.rglob("*.parquet") if "lang=" in str(path)]
    assert len(paths) >= 3
    more = extract_rows(rows(6, lang="en"), tmp_path / "second")
    publish(more, opened(name, more))  # the table knows its partitions
    publish(extract_rows(rows(1, 4, lang="de"), tmp_path / "third"), opened(name, more, merge_on=("id",)))
    assert [(row["id"], row["lang"]) for row in read()][:4] == [(1, "de"), (2, "en"), (3, "a b/c"), (4, "de")]
    with pytest.raises(UserError, match="is partitioned by lang, and --partition-by asks for id: leave it out"):
        opened(name, more, partition_by=("id",))


def test_partitions_of_other_iceberg_writers(tmp_path: Path, catalog: Catalog) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("at", pa.timestamp("us"))])
    ledger = extract_rows(rows(*range(20)).append_column("at", pa.array(range(20), pa.timestamp("us"))), tmp_path / "a")
    table = catalog.create_table("web.parts", schema)
    with table.update_spec() as update:
        update.add_field("at", DayTransform())
        update.add_field("id", BucketTransform(4))
    with table.update_schema() as columns:
        columns.union_by_name(ledger.schema)
    try:
        import pyiceberg_core  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="is partitioned by day of at, which pyiceberg cannot write .*-core"):
            opened("iceberg:lake.web.parts", ledger)
        return
    publish(ledger, opened("iceberg:lake.web.parts", ledger))
    assert len(catalog.load_table("web.parts").scan().to_arrow()) == 20


def test_columns_that_are_too_narrow_are_widened_if_asked(tmp_path: Path, catalog: Catalog) -> None:
    narrow = extract_rows(rows(1).append_column("n", pa.array([1], pa.int32())), tmp_path / "first")
    wide = extract_rows(rows(2).append_column("n", pa.array([1 << 40], pa.int64())), tmp_path / "second")
    publish(narrow, opened("iceberg:lake.web.found", narrow))
    with pytest.raises(UserError, match="column n is int32 in iceberg:lake.web.found and int64 in the output"):
        opened("iceberg:lake.web.found", wide)
    publish(wide, opened("iceberg:lake.web.found", wide, evolve=True))
    assert catalog.load_table("web.found").scan().to_arrow().column("n").to_pylist() in ([1 << 40, 1], [1, 1 << 40])
    publish(narrow, opened(f"delta:{tmp_path}/found", narrow))
    with pytest.raises(UserError, match="column n is int32 in delta:"):  # delta-rs cannot widen
        opened(f"delta:{tmp_path}/found", wide, evolve=True)


# --- Parquet files ------------------------------------------------------------------------------------------------


def read_files(directory: Path) -> list[dict[str, Any]]:
    found = ds.dataset(directory, format="parquet", partitioning="hive").to_table()
    return sorted(found.to_pylist(), key=lambda row: row["id"])


def test_a_directory_of_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it writes files writes them again."""
    name = f"parquet:{tmp_path}/found"
    ledger = extract_rows(rows(*range(10), lang="e n/1"), tmp_path / "first")
    original, calls = publish_module._rows, []

    def broken(*arguments: Any) -> Iterator[pa.RecordBatch]:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("killed")
        yield from original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "_rows", broken)
        with pytest.raises(ShortfallError, match="did not accept the rows"):
            publish(ledger, opened(name, ledger, partition_by=("lang",)))
    assert 0 < len(read_files(tmp_path / "found")) < 10
    assert publish(ledger, opened(name, ledger, partition_by=("lang",))) == 3
    assert publish(ledger, opened(name, ledger)) == 0
    assert [(row["id"], row["lang"]) for row in read_files(tmp_path / "found")] == [(i, "e n/1") for i in range(10)]

    other = extract_rows(rows(10, lang="fr", n=1), tmp_path / "second")
    with pytest.raises(UserError, match="lacks the column n in the output's types: give --evolve"):
        opened(name, other)
    with pytest.raises(UserError, match="is partitioned by lang, and --partition-by asks for id"):
        opened(name, other, partition_by=("id",), evolve=True)
    publish(other, opened(name, other, partition_by=("lang",), evolve=True))
    assert len(read_files(tmp_path / "found")) == 11


def test_a_directory_of_parquet_files_keeps_its_partitions(tmp_path: Path) -> None:
    first = extract_rows(rows(1, lang="en"), tmp_path / "first")
    name = f"parquet:{tmp_path}/found"
    publish(first, opened(name, first, partition_by=("lang",)))
    second = extract_rows(rows(2, lang="fr"), tmp_path / "second")
    publish(second, opened(name, second))
    assert {path.parent.name for path in (tmp_path / "found").rglob("*.parquet")} == {"lang=en", "lang=fr"}
    third = extract_rows(rows(3), tmp_path / "third")
    with pytest.raises(UserError, match="is partitioned by lang, which is not a column of the output"):
        opened(name, third)


def test_a_key_that_is_not_utf8_is_refused() -> None:
    raw = pa.array([b"\xff"], pa.binary())
    batch = pa.RecordBatch.from_pydict({"id": pa.Array.from_buffers(pa.string(), 1, raw.buffers())})
    with pytest.raises(UserError, match="--merge-on id is not valid UTF-8 in a row"):
        replaced_keys([batch], ["id"])


@pytest.mark.parametrize("option", ["partition_by", "merge_on"])
def test_keys_and_partitions_are_plain_values(tmp_path: Path, option: str) -> None:
    ledger = extract_rows(rows(1), tmp_path / "first")
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} entities is a column of list<.*: give columns"):
        opened(f"delta:{tmp_path}/found", ledger, **{option: ("id", "entities")})


def test_directories_that_cannot_take_rows(tmp_path: Path) -> None:
    ledger = extract_rows(rows(1), tmp_path / "first")
    with pytest.raises(UserError, match="--merge-on needs a table, and parquet:found is a directory of files"):
        opened("parquet:found", ledger, merge_on=("id",))
    with pytest.raises(UserError, match=r"shares files with .*first/in: choose a directory outside it"):
        source = locate(f"{tmp_path}/first/in")
        open_target(f"parquet:{tmp_path}/first/in/found", ledger.schema, apart=[Apart(source, deep=True)])
    beside = [Apart(source, deep=False)]  # single files, or those of a glob
    open_target(f"parquet:{tmp_path}/first/in/found", ledger.schema, apart=beside)
    with pytest.raises(UserError, match="shares files with"):
        open_target(f"parquet:{tmp_path}/first/in", ledger.schema, apart=beside)
    texts = pa.table({"id": ["x"], "text": ["t"]})
    (tmp_path / "found").mkdir()
    pq.write_table(texts, tmp_path / "found" / "a.parquet")
    with pytest.raises(UserError, match="column id is string in parquet:.* and int64 in the output"):
        opened(f"parquet:{tmp_path}/found", ledger)


def test_the_directory_of_a_table_takes_no_files_beside_it(tmp_path: Path, catalog: Catalog) -> None:
    ledger = extract_rows(rows(1), tmp_path / "first")
    write_deltalake(tmp_path / "delta", rows(1))
    catalog.create_table("web.pages", schema=rows(1).schema)
    pages = tmp_path / "warehouse/web/pages"
    for directory, table in (
        (tmp_path / "delta", "delta:PATH"),
        (tmp_path / "delta/day=1", "delta:PATH"),
        (pages, "iceberg:CATALOG"),
        (pages / "data", "iceberg:CATALOG"),
    ):
        with pytest.raises(UserError, match=f"--into parquet:.* is inside a table, .* give {table}"):
            opened(f"parquet:{directory}", ledger)
    opened(f"parquet:{tmp_path}/warehouse/found", ledger)
