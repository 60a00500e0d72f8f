"""One unit: its rows are in order, its batches are bounded, and a bad row does not harm others."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError
from spanlake.extraction.output.ledger import Request
from spanlake.extraction.output.plan import cut
from spanlake.extraction.output.rows import FOOTER_KEY
from spanlake.extraction.run.unit import ALL_ROWS, Job, UnitRunner
from spanlake.extraction.source import parquet as parquet_module
from spanlake.extraction.source.model import SourceReadError, Unit
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.parquet import RowReader
from spanlake.inference.settings import Settings
from spanlake.storage import locate


class Capitals:
    """Finds capitalised words; some texts make it fail."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.dead = False

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        texts, settings = zip(*requests, strict=True)
        self.calls.append(len(texts))
        if self.dead or any("POISON" in text for text in texts):
            raise ValueError("cannot read this.\nsecond line")
        for text in texts:
            yield [self.entity(match, settings[0]) for match in re.finditer(r"[A-Z]\w*", text)]

    def entity(self, match: re.Match[str], settings: Settings) -> Entity:
        label = settings.names[len(match.group()) % len(settings.names)]
        return Entity(match.start(), match.end(), match.group(), label, 0.75)


def make_job(source_path: Path, output: Path) -> tuple[Job, list[Unit]]:
    source = read_source(str(source_path), ("text",))
    request = Request(source, locate(str(output)), ("text",), Settings.make(["a", "b", "c"]), "m", "f", "auto", 100)
    (output / "tmp").mkdir(parents=True)
    job = Job(
        SourceHandle.of(source, ("text",)),
        request.output,
        "tmp",
        ("text",),
        request.output_schema,
        request.settings,
        "run",
        {"name": "m"},
    )
    return job, [unit for file in source.files for unit in cut(file, 100)]


def run_one(source: Path, output: Path, extractor: Capitals) -> pa.Table:
    job, (unit,) = make_job(source, output)
    UnitRunner(job, extractor).run(unit)
    return pq.read_table(output / f"{unit.name}.parquet")


# --- reading ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    unit_rows=st.integers(1, 25),
    batch_rows=st.integers(1, 12),
    order=st.randoms(use_true_random=False),
)
def test_units_read_in_any_order_give_their_rows(tmp_path_factory, groups, unit_rows, batch_rows, order) -> None:
    directory = tmp_path_factory.mktemp("source")
    write_groups(directory / "a.parquet", groups)
    source = read_source(str(directory), ("text",))
    units = list(cut(source.files[0], unit_rows))
    order.shuffle(units)
    reader = RowReader(source.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_module, "BATCH_ROWS", batch_rows)
        for unit in units:
            batches = list(reader.read(unit))
            read = [row for batch in batches for row in batch.column("id").to_pylist()]
            assert read == list(range(unit.first, unit.first + unit.rows))
            assert all(0 < batch.num_rows <= batch_rows for batch in batches)


def write_groups(path: Path, groups: list[int]) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    first = 0
    with pq.ParquetWriter(path, schema) as writer:
        for rows in groups:
            ids = list(range(first, first + rows))
            writer.write_table(pa.table({"id": ids, "text": [f"Row {i}" for i in ids]}, schema=schema))
            first += rows


def test_units_are_cut_in_the_same_places_whatever_was_read_before(tmp_path: Path) -> None:
    kinds = pa.array([f"kind {row // 90}" for row in range(1000)]).dictionary_encode()
    table = pa.table({"text": [f"{row}" for row in range(1000)], "kind": kinds})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    source = read_source(str(tmp_path), ("text",))
    units = [unit for file in source.files for unit in cut(file, 130)]
    reader = RowReader(source.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_module, "BATCH_ROWS", 70)
        one_after_another = [list(reader.read(unit)) for unit in units]
        each_first = [list(RowReader(source.root).read(unit)) for unit in units]
    assert [[len(batch) for batch in unit] for unit in one_after_another] == [[70, 30]] * 10
    for unit, alone in zip(one_after_another, each_first, strict=True):
        assert [batch.to_pylist() for batch in unit] == [batch.to_pylist() for batch in alone]


def test_batches_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "BATCH_BYTES", 100_000)
    pq.write_table(pa.table({"text": [f"{row}" * 20_000 for row in range(10, 40)]}), tmp_path / "a.parquet")
    source = read_source(str(tmp_path), ("text",))
    (unit,) = cut(source.files[0], 100)
    assert max(batch.num_rows for batch in RowReader(source.root).read(unit)) <= 3


def test_units_of_one_row_group_are_read_in_one_pass(tmp_path: Path) -> None:
    write_groups(tmp_path / "a.parquet", [100])
    source = read_source(str(tmp_path), ("text",))
    reader = RowReader(source.root)
    passes = []
    for unit in list(cut(source.files[0], 10))[::2]:  # as one of two workers receives them
        list(reader.read(unit))
        passes.append(reader._batches)
    assert len(set(map(id, passes))) == 1


def test_a_file_changed_since_it_was_planned_is_not_read(tmp_path: Path) -> None:
    write_groups(tmp_path / "a.parquet", [10])
    source = read_source(str(tmp_path), ("text",))
    (unit,) = cut(source.files[0], 100)
    reader = RowReader(source.root)
    write_groups(tmp_path / "a.parquet", [11])
    with pytest.raises(SourceReadError, match=r"rows 0 to 10 of a.parquet cannot be read \(the file has changed"):
        list(reader.read(unit))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceReadError, match="rows 0 to 10"):
        list(reader.read(unit))
    write_groups(tmp_path / "a.parquet", [10])
    assert sum(batch.num_rows for batch in reader.read(unit)) == 10


def test_damaged_pages_are_found(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text number {row}" for row in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = bytes(40)
    (tmp_path / "a.parquet").write_bytes(content)
    source = read_source(str(tmp_path), ("text",))
    with pytest.raises(SourceReadError, match="rows 0 to 1,000 of a.parquet"):
        list(RowReader(source.root).read(next(cut(source.files[0], 1000))))


# --- extracting and committing ------------------------------------------------------------------------------------


def test_a_unit_is_its_rows_with_entities_and_errors(tmp_path: Path) -> None:
    texts = ["Ada met Bob", None, "", "nobody", "Some POISON here", "Éva 😀 Ida"]
    pq.write_table(pa.table({"id": range(6), "text": texts}), tmp_path / "a.parquet")
    job, (unit,) = make_job(tmp_path / "a.parquet", tmp_path / "out")
    counts = UnitRunner(job, Capitals(), {"device": "cpu"}).run(unit)
    path = tmp_path / "out" / f"{unit.name}.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["id", "text", "entities", "error"]
    assert str(table.schema.field("entities").type) == (
        "list<element: struct<start: int32, end: int32, text: string, label: string, score: float>>"
    )
    assert table["id"].to_pylist() == list(range(6)) and table["text"].to_pylist() == texts
    assert table["error"].to_pylist() == [None, "text is null", None, None, "ValueError: cannot read this", None]
    found = table["entities"].to_pylist()
    assert found[1] is None and found[4] is None and found[2] == found[3] == []
    assert found[0][1] == {"start": 8, "end": 11, "text": "Bob", "label": "a", "score": 0.75}
    assert [entity["text"] for entity in found[5]] == ["Ida"]
    for text, entities in zip(texts, found, strict=True):
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities or [])
    assert (counts.rows, counts.failed_rows, counts.by_label) == (6, 2, {"a": 3, "b": 0, "c": 0})
    said = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    assert said["unit"] == unit.name and said["by_label"] == {"a": 3, "b": 0, "c": 0} and said["device"] == "cpu"


def test_one_bad_row_costs_its_neighbours_little(tmp_path: Path) -> None:
    texts = [f"Text {row}" for row in range(100)]
    texts[37] = "POISON"
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    extractor = Capitals()
    table = run_one(tmp_path / "a.parquet", tmp_path / "out", extractor)
    assert table["error"].null_count == 99 and table["error"][37].as_py() is not None
    assert table["entities"].null_count == 1
    assert len(extractor.calls) < 20


def test_an_extractor_that_fails_on_all_texts_blames_no_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["Ada"]}), tmp_path / "a.parquet")
    job, (unit,) = make_job(tmp_path / "a.parquet", tmp_path / "out")
    extractor = Capitals()
    extractor.dead = True
    with pytest.raises(ShortfallError, match="no longer answers"):
        UnitRunner(job, extractor).run(unit)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"Ada", b"\xff\xfe", b"Bob"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), tmp_path / "a.parquet")
    table = run_one(tmp_path / "a.parquet", tmp_path / "out", Capitals())
    assert table["error"].to_pylist() == [None, "text is not valid UTF-8 (byte 0)", None]
    assert [len(found or []) for found in table["entities"].to_pylist()] == [1, 0, 1]


def test_columns_of_many_types_come_through(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["Ada", None, "Bob"], pa.large_string()),
            "dictionary": pa.array(["x", "y", None]).dictionary_encode(),
            "nested": pa.array([{"a": [1, None]}, None, {"a": []}], pa.struct([("a", pa.list_(pa.int16()))])),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "time": pa.array([1, None, 3], pa.timestamp("ns", tz="Europe/Paris")),
            "seconds": pa.array([1, None, 3], pa.timestamp("s")),
            "date": pa.array([1, None, 3], pa.date32()),
            "decimal": pa.array([1, None, 3]).cast(pa.decimal128(30, 2)),
            "binary": pa.array([b"\xff", None, b""], pa.binary()),
            "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
            "half": pa.array([1.5, None, 2.5], pa.float16()),
            "nothing": pa.nulls(3),
            "required": pa.array([1, 2, 3]),
        },
    )
    table = table.cast(table.schema.set(12, pa.field("required", pa.int64(), nullable=False)))
    pq.write_table(table, tmp_path / "a.parquet")
    result = run_one(tmp_path / "a.parquet", tmp_path / "out", Capitals())
    assert result.drop_columns(["entities", "error"]) == pq.read_table(tmp_path / "a.parquet")
    assert result["error"].to_pylist() == [None, "text is null", None]


def test_dictionaries_that_differ_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "BATCH_ROWS", 3)
    texts = [f"Text {row}" for row in range(50)]
    table = pa.table({"text": pa.array(texts).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    result = run_one(tmp_path / "a.parquet", tmp_path / "out", Capitals())
    assert result["text"].to_pylist() == texts and pa.types.is_dictionary(result["text"].type)


def test_large_output_is_written_in_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanlake.extraction.run.unit._GROUP_BYTES", 1000)
    monkeypatch.setattr(parquet_module, "BATCH_ROWS", 10)
    pq.write_table(pa.table({"text": ["Ada " * 20] * 100}), tmp_path / "a.parquet")
    job, (unit,) = make_job(tmp_path / "a.parquet", tmp_path / "out")
    UnitRunner(job, Capitals()).run(unit)
    assert pq.read_metadata(tmp_path / "out" / f"{unit.name}.parquet").num_row_groups == 10


def test_columns_that_one_file_lacks_are_null_in_its_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["Ada"], "note": pa.nulls(1)}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"more": [1], "note": ["n"], "text": ["Bob"]}), tmp_path / "in" / "b.parquet")
    job, units = make_job(tmp_path / "in", tmp_path / "out")
    for unit in units:
        UnitRunner(job, Capitals()).run(unit)
    tables = [pq.read_table(tmp_path / "out" / f"{unit.name}.parquet") for unit in units]
    assert pa.concat_tables(tables).select(["text", "note", "more"]).to_pylist() == [
        {"text": "Ada", "note": None, "more": None},
        {"text": "Bob", "note": "n", "more": 1},
    ]


def test_a_file_without_rows_gives_a_file_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    table = run_one(tmp_path / "a.parquet", tmp_path / "out", Capitals())
    assert table.num_rows == 0 and table.column_names == ["text", "entities", "error"]


def test_nothing_is_committed_when_reading_fails_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "BATCH_ROWS", 10)
    write_groups(tmp_path / "a.parquet", [50, 50])
    job, (unit,) = make_job(tmp_path / "a.parquet", tmp_path / "out")
    take = RowReader._take

    def take_or_fail(reader: RowReader, limit: int) -> pa.RecordBatch:
        if reader._next_row >= 60:
            raise OSError("the disk is gone")
        return take(reader, limit)

    monkeypatch.setattr(RowReader, "_take", take_or_fail)
    with pytest.raises(SourceReadError, match="the disk is gone"):
        UnitRunner(job, Capitals()).run(unit)
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(("together", "calls"), [(True, [1, 1, 2]), (False, [1, 1])])
def test_rows_that_may_not_be_read(tmp_path: Path, together: bool, calls: list[int]) -> None:
    """The other rows are read one by one, and then together, with the same result as without bad rows."""
    texts = pa.array(["Ada", "Bad", None, "Curie"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    job, (unit,) = make_job(tmp_path / "a.parquet", tmp_path / "out")
    asked: list[int] = []

    def may_read(row: int) -> bool:
        asked.append(row)
        return together if row == ALL_ROWS else row != 1

    extractor = Capitals()
    assert UnitRunner(job, extractor).run(unit, may_read=may_read).failed_rows == 2
    assert asked == [0, 1, 2, 3, ALL_ROWS] and extractor.calls == calls
    found = pq.read_table(tmp_path / "out" / f"{unit.name}.parquet").to_pylist()
    assert [row["error"] for row in found] == [None, "reading the text killed the worker, twice", "text is null", None]
    assert [row["entities"] and row["entities"][0]["text"] for row in found] == ["Ada", None, None, "Curie"]
