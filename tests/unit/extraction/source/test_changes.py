"""Changes of Delta and Iceberg tables between two snapshots: added rows are extracted, and deleted ones are marked."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta import delete_from_delta
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.history import find_since
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_manifest
from spanlake.extraction.source.changes import _surplus, read_changes
from spanlake.extraction.source.model import CHANGE, Source
from spanlake.extraction.source.open import SourceHandle
from spanlake.extraction.source.tables import TableName
from spanlake.inference.settings import Settings
from spanlake.storage import locate


def rows(*ids: int, text: str = "Row") -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "text": pa.array([f"{text} {i}" for i in ids], pa.string())})


def changes(uri: str, since: int | None, **more: Any) -> Source:
    name = TableName.parse(uri)
    assert name
    return read_changes(name, since, ("text",), None, **more)


def read(source: Source) -> list[tuple[str, int, str]]:
    """Returns the change, the id and the text of each row, sorted."""
    reader = SourceHandle.of(source, ("text",)).open()
    batches = [batch for file in source.files for batch in reader.read(file.whole())]
    return sorted((row[CHANGE], row["id"], row["text"]) for batch in batches for row in batch.to_pylist())


# --- Delta --------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_deltalake(tmp_path / "table", rows(*range(10)))
    return tmp_path / "table"


def test_appended_rows_are_added(table: Path) -> None:
    write_deltalake(table, rows(10, 11), mode="append")
    source = changes(f"delta:{table}", 0)
    assert read(source) == [("insert", 10, "Row 10"), ("insert", 11, "Row 11")]
    assert source.uri == f"delta:{table}@1" and len(source.files) == 1
    assert len(read(changes(f"delta:{table}@0", None))) == 10


def test_the_files_that_did_not_change_are_not_opened(table: Path) -> None:
    write_deltalake(table, rows(10, 11), mode="append")
    first = DeltaTable(table, version=0).file_uris()[0]
    Path(first).unlink()
    assert len(read(changes(f"delta:{table}", 0))) == 2


def test_rows_that_a_writer_copied_into_a_new_file_have_not_changed(table: Path) -> None:
    DeltaTable(table).update(updates={"text": "'New'"}, predicate="id = 3")
    DeltaTable(table).delete("id = 7")
    expected = [("delete", 3, "Row 3"), ("delete", 7, "Row 7"), ("insert", 3, "New")]
    assert read(changes(f"delta:{table}", 0)) == expected
    write_deltalake(table, rows(10), mode="append")
    DeltaTable(table).optimize.compact()
    assert read(changes(f"delta:{table}", 0)) == [*expected[:2], ("insert", 3, "New"), ("insert", 10, "Row 10")]
    assert read(changes(f"delta:{table}", DeltaTable(table).version())) == []


def test_rows_of_a_new_deletion_vector_are_deleted(table: Path) -> None:
    """A log entry removes the file, and adds it again with a vector."""
    log = table / "_delta_log"
    first = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    (add,) = [action["add"] for action in first if "add" in action]
    gone = {"path": add["path"], "dataChange": True, "deletionTimestamp": 1, "partitionValues": {}, "size": add["size"]}
    protocol = [action for action in first if "protocol" in action]
    actions = [*protocol, {"remove": gone}, {"add": add}]
    (log / f"{1:020}.json").write_text("".join(json.dumps(action) + "\n" for action in actions))
    delete_from_delta(table, 1, [2, 5])
    assert read(changes(f"delta:{table}", 0)) == [("delete", 2, "Row 2"), ("delete", 5, "Row 5")]


def test_columns_that_were_added_since(table: Path) -> None:
    more = rows(10).append_column("lang", pa.array(["en"]))
    write_deltalake(table, more, mode="append", schema_mode="merge")
    DeltaTable(table).delete("id = 7")
    source = changes(f"delta:{table}", 0)
    assert source.schema.names == ["id", "text", "lang", CHANGE]
    assert read(source) == [("delete", 7, "Row 7"), ("insert", 10, "Row 10")]


def test_a_table_of_which_nothing_can_be_said(table: Path) -> None:
    with pytest.raises(UserError, match="--since 5 does not come before delta:.*@0 in the history of the table"):
        changes(f"delta:{table}", 5)
    write_deltalake(table, rows(1).append_column(CHANGE, pa.array(["x"])), mode="append", schema_mode="merge")
    with pytest.raises(UserError, match="has a column called _change_type, which --since adds"):
        changes(f"delta:{table}", 0)
    with pytest.raises(UserError, match="--since needs a table, not a.parquet: give delta:PATH"):
        TableName.of("a.parquet", "--since")


@settings(deadline=None)
@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_equal_rows_cancel_as_often_as_both_sides_have_them(one: list[int], other: list[int]) -> None:
    left = _surplus(np.array(one, np.int64), np.array(other, np.int64))
    for value in range(6):
        assert left[np.array(one, np.int64) == value].sum() == max(0, one.count(value) - other.count(value))


# --- Iceberg ------------------------------------------------------------------------------------------------------


def test_changes_of_an_iceberg_table(catalog: Catalog) -> None:
    table = catalog.create_table("web.pages", schema=rows(1).schema)
    table.append(rows(*range(10)))
    first = table.current_snapshot().snapshot_id
    table.append(rows(10, 11))
    table.delete("id = 7")
    table.upsert(rows(3, text="New"), ["id"])
    source = changes("iceberg:lake.web.pages", first)
    expected = [("delete", 3, "Row 3"), ("delete", 7, "Row 7"), ("insert", 3, "New 3")]
    assert read(source) == [*expected, ("insert", 10, "Row 10"), ("insert", 11, "Row 11")]
    with table.update_schema() as update:
        update.rename_column("text", "body")
    table.append(pa.table({"id": pa.array([12], pa.int64()), "body": ["Row 12"]}))
    name = TableName.parse("iceberg:lake.web.pages")
    assert name and read_changes(name, first, ("body",), None).rows == 6
    with pytest.raises(UserError, match="--since 7 does not come before iceberg:lake.web.pages@"):
        read_changes(name, 7, ("body",), None)


# --- outputs ------------------------------------------------------------------------------------------------------


class Whole:
    """Finds the whole text."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, _ in requests:
            yield [Entity(0, len(text), text, "a", 0.75)]


def request(source: Source, output: Path, layout: Layout) -> Request:
    layout = layout.with_column(CHANGE)
    layout.check(source.schema, ("text",))
    return Request(source, locate(str(output)), ("text",), Settings.make(["a"]), "m", "f", "auto", 4, layout)


def extract(source: Source, output: Path, layout: Layout | None = None) -> tuple[Ledger, list[dict[str, Any]]]:
    asked = request(source, output, layout or Layout())
    ledger = prepare(asked)
    run_units(asked, ledger, Whole())
    assert audit(ledger).complete
    assert not prepare(asked).pending(ledger.committed()).num_rows
    return ledger, [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_added_rows_are_extracted_and_deleted_ones_are_marked(table: Path, tmp_path: Path) -> None:
    DeltaTable(table).update(updates={"text": "'New'"}, predicate="id = 3")
    DeltaTable(table).delete("id = 7")
    ledger, found = extract(changes(f"delta:{table}", 0), tmp_path / "nested")
    seen = sorted(
        (row["id"], row[CHANGE], row["entities"] and row["entities"][0]["text"], row["error"]) for row in found
    )
    assert seen == [(3, "delete", None, None), (3, "insert", "New", None), (7, "delete", None, None)]
    assert ledger.manifest["source"]["since"] == 0 and audit(ledger).by_label == {"a": 1}
    layout = Layout(kind="mentions", keys=("id",))
    _, found = extract(changes(f"delta:{table}", 0), tmp_path / "mentions", layout)
    assert sorted((row["id"], row[CHANGE], row["label"]) for row in found) == [
        (3, "delete", None),
        (3, "insert", "a"),
        (7, "delete", None),
    ]


def test_a_night_without_changes_is_a_complete_output(table: Path, tmp_path: Path) -> None:
    ledger, found = extract(changes(f"delta:{table}", 0), tmp_path / "out")
    assert found == [] and ledger.schema.names == ["id", "text", CHANGE, "entities", "error"]
    assert pq.read_table(next((tmp_path / "out").glob("*.parquet"))).schema.names == ledger.schema.names


def test_since_is_the_newest_complete_output(table: Path, tmp_path: Path) -> None:
    uri, nights = f"delta:{table}", tmp_path / "nights"

    def since(value: str, output: Path) -> int | None:
        place = locate(str(output))
        return find_since(uri, value, place, read_manifest(place), None)

    assert since(str(nights), nights / "1") is None
    extract(changes(uri, None), nights / "1")
    annotated = nights / "annotated" / "_spanlake" / "manifest.json"  # an output of another command
    annotated.parent.mkdir(parents=True)
    annotated.write_text('{"format": "annotation 1", "created": "2999-01-01"}')
    with pytest.raises(UserError, match="annotated is an output of another command, not of `spanlake extract`"):
        since(str(nights / "annotated"), nights / "2")
    write_deltalake(table, rows(10), mode="append")
    assert since(str(nights), nights / "2") == 0 == since(str(nights / "1"), nights / "2")
    half = request(changes(uri, 0), nights / "2", Layout())
    prepare(half).save()  # killed before its first unit
    write_deltalake(table, rows(11), mode="append")
    assert since(str(nights), nights / "3") == 0  # the second night is not complete
    assert since(str(nights), nights / "2") == 0  # it continues as it began
    with pytest.raises(UserError, match="is not a complete output of delta:"):
        since(str(nights / "2"), nights / "3")
    with pytest.raises(UserError, match="began with --since 0, and 1 is requested"):
        since("1", nights / "2")
    extract(changes(f"{uri}@1", 0), nights / "2")
    assert since(str(nights), nights / "3") == 1
