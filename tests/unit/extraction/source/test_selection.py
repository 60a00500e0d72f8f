"""If only some rows of a file belong to a source, its units have each of them once, and no other."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanlake.decoding import Entity
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.plan import complete_plan, cut, plan_table, units_of
from spanlake.extraction.run.unit import Job, UnitRunner
from spanlake.extraction.source import lines, parquet
from spanlake.extraction.source.model import Source, SourceReadError
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.selection import pack, packed_length, unpack
from spanlake.inference.settings import Settings
from spanlake.storage import locate


def choose(source: Source, mask: list[bool]) -> Source:
    """Returns the source with only some rows of its one file."""
    (file,) = source.files
    return replace(source, files=(replace(file, kept=pack(np.array(mask, bool))),))


def chosen(mask: list[bool]) -> list[int]:
    return [row for row, keep in enumerate(mask) if keep]


def write(path: Path, groups: list[int]) -> None:
    """Writes a file whose ids are the numbers of its rows, in row groups of these sizes."""
    ids = np.arange(sum(groups))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": int(i), "text": f"Row {i}"}) + "\n" for i in ids))
        return
    table = pa.table({"id": ids, "text": [f"Row {i}" for i in ids]})
    with pq.ParquetWriter(path, table.schema) as writer:
        for first, rows in zip(np.cumsum([0, *groups]).tolist(), groups, strict=False):
            writer.write_table(table.slice(first, rows))


MASKS = st.lists(st.integers(1, 25), min_size=1, max_size=6).flatmap(
    lambda groups: st.tuples(st.just(groups), st.lists(st.booleans(), min_size=sum(groups), max_size=sum(groups)))
)


@given(mask=st.lists(st.booleans(), min_size=1))
def test_a_mask_comes_back_as_it_was_packed(mask: list[bool]) -> None:
    packed = pack(np.array(mask))
    if all(mask):
        assert packed == b""
    else:
        assert unpack(packed).tolist() == mask and packed_length(packed) == len(mask)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@settings(max_examples=60, deadline=None)
@given(
    file=MASKS,
    unit_rows=st.integers(1, 25),
    batch_rows=st.integers(1, 12),
    order=st.randoms(use_true_random=False),
)
def test_units_hold_each_chosen_row_once(tmp_path_factory, suffix, file, unit_rows, batch_rows, order) -> None:
    groups, mask = file
    directory = tmp_path_factory.mktemp("source")
    write(directory / f"a.{suffix}", groups)
    source = choose(read_source(str(directory), ("text",)), mask)
    assert source.rows == sum(mask)
    units = list(cut(source.files[0], unit_rows))
    assert [place for unit in units for place in unit.places()] == chosen(mask)
    assert all(0 < unit.rows <= unit_rows for unit in units)
    assert list(units_of(plan_table(units))) == units
    shuffled = list(units)
    order.shuffle(shuffled)
    reader = SourceHandle.of(source, ("text",)).open()
    with pytest.MonkeyPatch.context() as patch:
        for module in (parquet, lines):
            patch.setattr(module, "BATCH_ROWS", batch_rows)
        read = {unit.name: list(reader.read(unit)) for unit in shuffled}
        alone = {unit.name: list(SourceHandle.of(source, ("text",)).open().read(unit)) for unit in units}
    assert [row for unit in units for batch in read[unit.name] for row in batch["id"].to_pylist()] == chosen(mask)
    for unit in units:
        sizes = [batch.num_rows for batch in read[unit.name]]
        assert all(0 < size <= batch_rows for size in sizes)
        assert sizes == [batch.num_rows for batch in alone[unit.name]]  # whatever was read before
        assert list(unit.head(3).places()) == list(unit.places())[:3] and unit.head(unit.rows) == unit


def test_row_groups_without_a_chosen_row_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test overwrites these row groups, so that reading them would fail."""
    monkeypatch.setattr(parquet, "BATCH_ROWS", 5)
    path = tmp_path / "a.parquet"
    write(path, [10] * 5)
    metadata = pq.read_metadata(path)
    start = metadata.row_group(1).column(0).data_page_offset - 20
    end = metadata.row_group(3).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)
    source = choose(read_source(str(tmp_path), ("text",)), [True] * 10 + [False] * 38 + [True] * 2)
    (unit,) = cut(source.files[0], 100)
    batches = list(SourceHandle.of(source, ("text",)).open().read(unit))
    assert [batch["id"].to_pylist() for batch in batches] == [list(range(5)), list(range(5, 10)), [48, 49]]
    everything = next(cut(replace(source.files[0], kept=b""), 100))
    with pytest.raises(SourceReadError):
        list(SourceHandle.of(source, ("text",)).open().read(everything))


class Whole:
    """Finds one entity: the whole text."""

    def stream(self, requests, on_pass=None) -> Iterator[list[Entity]]:
        return ([Entity(0, len(text), text, "a", 0.5)] for text, _ in requests)


def extract(source: Source, output: Path, layout: Layout) -> Ledger:
    labels = Settings.make(["a"])
    request = Request(source, locate(str(output)), ("text",), labels, "m", "f", "auto", 4, layout)
    ledger = prepare(request)
    ledger.save()
    runner = UnitRunner(Job.of(request, ledger), Whole())
    for unit in units_of(ledger.pending(ledger.committed())):
        runner.run(unit)
    return read_ledger(request.output)


@pytest.mark.parametrize("kind", ["nested", "mentions"])
def test_an_audit_counts_the_chosen_rows(tmp_path: Path, kind: str) -> None:
    mask = [row % 3 == 1 for row in range(40)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", [7, 20, 13])
    source = choose(read_source(str(tmp_path / "in"), ("text",)), mask)
    ledger = extract(source, tmp_path / "out", Layout(kind, ("id",) if kind == "mentions" else ()))
    result = audit(ledger)
    assert result.complete and result.source_rows == result.output_rows == sum(mask)
    found = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert found["id"].to_pylist() == chosen(mask)
    if kind == "mentions":
        assert found["source_row"].to_pylist() == chosen(mask)
    first = min((tmp_path / "out").glob("*.parquet"))
    first.unlink()
    assert not audit(ledger).complete
    extract(source, tmp_path / "out", Layout(kind, ("id",) if kind == "mentions" else ()))
    assert audit(read_ledger(locate(str(tmp_path / "out")))).complete and first.exists()


def test_an_output_without_any_row_has_the_columns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", [5])
    source = choose(read_source(str(tmp_path / "in"), ("text",)), [False] * 5)
    assert audit(extract(source, tmp_path / "out", Layout())).complete
    found = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert found.num_rows == 0 and found.column_names == ["id", "text", "entities", "error"]
    assert prepare_again(source, tmp_path / "out").plan.num_rows == 1


def prepare_again(source: Source, output: Path) -> Ledger:
    return prepare(Request(source, locate(str(output)), ("text",), Settings.make(["a"]), "m", "f", "auto", 4))


def test_a_plan_of_an_earlier_version_keeps_every_row(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [10])
    units = list(cut(read_source(str(tmp_path), ("text",)).files[0], 4))
    assert list(units_of(complete_plan(plan_table(units).drop_columns("kept")))) == units


def test_views_of_strings_can_be_chosen(tmp_path: Path) -> None:
    """Delta's own writer makes such files when it changes rows."""
    view, strings = pa.string_view(), ["a", "b", "c"]
    columns = {
        "text": pa.array(strings, view),
        "tags": pa.array([[text] for text in strings], pa.list_(view)),
        "page": pa.array([{"raw": text.encode()} for text in strings], pa.struct([("raw", pa.binary_view())])),
        "of": pa.array([[(text, text)] for text in strings], pa.map_(pa.string(), view)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = choose(read_source(str(tmp_path), ("text",)), [True, False, True])
    (batch,) = SourceHandle.of(source, ("text",)).open().read(source.files[0].whole())
    assert batch.to_pylist() == [row for row in pa.table(columns).to_pylist() if row["text"] != "b"]
