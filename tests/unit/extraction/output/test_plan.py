"""Plans: every row of a source is in exactly one unit, and every wrong source has one message."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanlake.errors import UserError
from spanlake.extraction.output import plan as plan_module
from spanlake.extraction.output.plan import cut, default_unit_rows, files_of, merged_plan, plan_table, units_of
from spanlake.extraction.source.model import SourceFile, Unit
from spanlake.extraction.source.open import read_source


def write(path: Path, table: pa.Table | dict, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def source_file(groups: list[int], size: int = 1000) -> SourceFile:
    return SourceFile("a.parquet", 1, "d" * 64, sum(groups), tuple(groups), size)


@settings(deadline=None)
@given(groups=st.lists(st.integers(0, 50), max_size=12), unit_rows=st.integers(1, 40))
def test_units_cover_each_row_once_in_order(groups: list[int], unit_rows: int) -> None:
    units = list(cut(source_file(groups), unit_rows))
    covered = [row for unit in units for row in range(unit.first, unit.first + unit.rows)]
    assert covered == list(range(sum(groups)))
    assert all(unit.rows <= unit_rows for unit in units)
    assert units and [unit.name for unit in units] == sorted({unit.name for unit in units})


@settings(deadline=None)
@given(groups=st.lists(st.integers(1, 20), min_size=1, max_size=12), unit_rows=st.integers(20, 60))
def test_row_groups_that_fit_are_not_cut(groups: list[int], unit_rows: int) -> None:
    ends = {sum(groups[: index + 1]) for index in range(len(groups))}
    assert {unit.first + unit.rows for unit in cut(source_file(groups), unit_rows)} <= ends


def test_large_rows_make_small_units() -> None:
    units = list(cut(source_file([1000], size=1000 << 20), 1000))  # 1 MiB a row
    assert max(unit.rows for unit in units) <= 256


def test_plan_table_keeps_units(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"{name}.parquet", {"text": ["x"] * 10}, row_group_size=3)
    source = read_source(str(tmp_path), ("text",))
    units = [unit for file in source.files for unit in cut(file, 4)]
    table = plan_table(units)
    assert list(units_of(table)) == units
    assert list(units_of(table.slice(3, 2))) == units[3:5]
    assert [(unit.path, rows) for unit, rows in files_of(table)] == [("a.parquet", 10), ("b.parquet", 10)]


def test_plans_of_many_chunks_keep_the_order_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_CHUNK_UNITS", 3)
    units = [Unit(f"{file}.parquet", 1, "d" * 64, first, 5) for file in "abcdef" for first in range(0, 20, 5)]
    table = plan_table(iter(units))
    assert list(units_of(table)) == units
    assert list(units_of(table.slice(4, 7))) == units[4:11]
    one, two = ([unit for unit in units if unit.path[0] in files] for files in ("ace", "bdf"))
    assert list(units_of(merged_plan(plan_table(one), plan_table(two)))) == units
    assert merged_plan(plan_table([]), table).equals(table)


def test_directory_is_read_whole_but_for_hidden_names(tmp_path: Path) -> None:
    for name in ("z.parquet", "year=2024/a.parquet", "_old/b.parquet", ".tmp/c.parquet", "sub/_d.parquet"):
        write(tmp_path / name, {"text": [name]})
    (tmp_path / "README.md").write_text("hello")
    source = read_source(str(tmp_path), ("text",))
    assert sorted(file.path for file in source.files) == ["year=2024/a.parquet", "z.parquet"]
    assert source.ignored == ("README.md", ".tmp/c.parquet", "_old/b.parquet", "sub/_d.parquet")


def test_locks_and_checkpoints_among_the_data_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x"]})
    names = (
        ".a.parquet.crc",
        "_SUCCESS",
        "a.parquet.lock",
        "a.parquet.tmp",
        "checkpoint",
        "x/.ipynb_checkpoints/a.csv",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for uri in (str(tmp_path), f"{tmp_path}/**"):
        source = read_source(uri, ("text",))
        assert [file.path for file in source.files] == ["a.parquet"] and sorted(source.ignored) == sorted(names)


def test_names_of_units_sort_as_the_source_does(tmp_path: Path) -> None:
    names = ["b/1.parquet", "a/2.parquet", "a/10.parquet", "a.parquet", "a b.parquet"]
    for name in names:
        write(tmp_path / name, {"text": ["x"] * 5})
    units = [unit.name for file in read_source(str(tmp_path), ("text",)).files for unit in cut(file, 2)]
    assert units == sorted(units)
    assert len(set(units)) == 5 * 3


def test_adding_a_file_renames_no_unit(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {unit.name for file in read_source(str(tmp_path), ("text",)).files for unit in cut(file, 2)}

    write(tmp_path / "b.parquet", {"text": ["x"] * 5})
    before = names()
    write(tmp_path / "a.parquet", {"text": ["x"] * 5})
    assert before < names()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("[b-z].parquet", ["b.parquet"]),
        ("*/*.parquet", ["sub/c.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "sub/c.parquet", "sub/deep/d.parquet"]),
        ("sub/?.parquet", ["c.parquet"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a.parquet", "b.parquet", "sub/c.parquet", "sub/deep/d.parquet"):
        write(tmp_path / name, {"text": ["x"]})
    assert sorted(file.path for file in read_source(f"{tmp_path}/{pattern}", ("text",)).files) == expected


def test_a_file_name_with_wildcard_characters_is_a_file_name(tmp_path: Path) -> None:
    write(tmp_path / "a[1].parquet", {"text": ["x"]})
    assert [file.path for file in read_source(str(tmp_path / "a[1].parquet"), ("text",)).files] == ["a[1].parquet"]


def test_file_uri(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x"]})
    assert read_source(f"file://{tmp_path}", ("text",)).rows == 1


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_types(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", {"text": pa.array(["x", None], pa.string()).cast(kind)})
    assert read_source(str(tmp_path), ("text",)).schema.field("text").type == kind


def test_columns_that_a_file_lacks_are_part_of_the_schema(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x"], "note": pa.nulls(1)})
    write(tmp_path / "b.parquet", {"note": ["n"], "text": ["x"], "more": [1]})
    assert read_source(str(tmp_path), ("text",)).schema == pa.schema(
        [("text", pa.string()), ("note", pa.string()), ("more", pa.int64())]
    )


def test_mistakes_are_named(tmp_path: Path) -> None:
    """Each message is one line, with the value and the remedy."""

    def refused(source: str, column: str = "text") -> str:
        with pytest.raises(UserError) as caught:
            read_source(source, (column,))
        message = str(caught.value)
        assert "\n" not in message and message.endswith(".")
        return message

    good = write(tmp_path / "good" / "a.parquet", {"id": [1], "text": ["x"], "title": ["t"]})
    assert "nowhere does not exist" in refused(str(tmp_path / "nowhere"))
    assert "matches no file" in refused(str(tmp_path / "good" / "*.csv"))
    assert "nope://bucket/x" in refused("nope://bucket/x")
    message = refused(str(good), "body")
    assert "no column called body" in message and "text, title" in message
    message = refused(str(good), "id")
    assert "id holds int64" in message and "text, title" in message

    (tmp_path / "empty").mkdir()
    assert "holds no file to read" in refused(str(tmp_path / "empty"))

    broken = tmp_path / "broken"
    write(broken / "a.parquet", {"text": ["x"]})
    (broken / "b.parquet").write_text("certainly not Parquet")
    assert "b.parquet is not a whole Parquet file" in refused(str(broken))
    (broken / "c.parquet").write_bytes(good.read_bytes()[:-6])
    assert "1 more" in refused(str(broken))
    (broken / "b.parquet").write_bytes(good.read_bytes()[:-60] + b"\xff" * 52 + good.read_bytes()[-8:])
    assert "b.parquet has a footer that cannot be read" in refused(str(broken))

    for name in ("entities", "error"):
        write(tmp_path / name / "a.parquet", {"text": ["x"], name: [1]})
        assert f"already has a column called {name}" in refused(str(tmp_path / name))

    write(tmp_path / "mixed" / "a.parquet", {"text": ["x"], "id": [1]})
    write(tmp_path / "mixed" / "b.parquet", {"text": ["x"], "id": ["1"]})
    message = refused(str(tmp_path / "mixed"))
    assert "id is int64 in a.parquet and string in b.parquet" in message

    write(tmp_path / "partly" / "a.parquet", {"text": ["x"]})
    write(tmp_path / "partly" / "b.parquet", {"body": ["x"]})
    assert "b.parquet has no column called text" in refused(str(tmp_path / "partly"))


@pytest.mark.parametrize(("rows", "expected"), [(0, 64), (300, 64), (10_000, 156), (10**9, 2048)])
def test_units_of_small_sources_are_small(rows: int, expected: int) -> None:
    assert default_unit_rows(rows) == expected
