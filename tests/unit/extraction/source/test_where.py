"""Conditions in SQL: the rows that fulfil them, wrong conditions, and the data that they read."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.source import choice as choice_module
from spanlake.extraction.source import parquet
from spanlake.extraction.source.choice import Choice
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.extraction.source.where import parse_where
from spanlake.inference.settings import Settings
from spanlake.storage import locate

# --- the rows that fulfil a condition -----------------------------------------------------------------------------

ROW = {
    "whole": 7,
    "big": 2**64 - 1,
    "half": 1.5,
    "price": Decimal("1.25"),
    "word": "Abc",
    "kind": "k",
    "ok": True,
    "day": date(2024, 2, 29),
    "at": datetime(2024, 2, 29, 12),
    "zoned": datetime(2024, 2, 29, 12, tzinfo=timezone.utc),
    "clock": time(12, 30),
    "raw": b"\xff",
    "page": {"url": "http://x", "size": 3},
    "a.b": 1,
}
SCHEMA = pa.schema(
    [
        ("whole", pa.int16()),
        ("big", pa.uint64()),
        ("half", pa.float16()),
        ("price", pa.decimal128(10, 2)),
        ("word", pa.large_string()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("ok", pa.bool_()),
        ("day", pa.date32()),
        ("at", pa.timestamp("ns")),
        ("zoned", pa.timestamp("us", "America/Chicago")),
        ("clock", pa.time64("us")),
        ("raw", pa.binary()),
        ("page", pa.struct([("url", pa.string_view()), ("size", pa.int32())])),
        ("a.b", pa.int64()),
    ]
)
BATCH = pa.RecordBatch.from_pylist([ROW, dict.fromkeys(ROW)], SCHEMA)

HOLDS = [
    "whole = 7",
    "whole == 7 AND whole <> 8",
    "7 <= whole AND whole < 7.5",
    "whole > -1 AND NOT whole > 7",
    "whole BETWEEN 7 AND 8",
    "whole NOT BETWEEN 8 AND 9",
    "whole IN (1, 7.0)",
    "whole NOT IN (1, 2)",
    "whole < 99999999999999999999",
    "big = 18446744073709551615",
    "half >= 1.5 AND half < 1.6e0",
    "price = 1.25 AND price < 2",
    "word = 'Abc' OR ok",
    "(word = 'x' OR kind = 'k') AND ok",
    "word LIKE 'A%c' AND word NOT LIKE 'a%' AND word ILIKE 'a_C'",
    "starts_with(word, 'Ab') AND ends_with(word, 'bc') AND contains(word, 'b')",
    "regexp_matches(word, '^A[b]c$')",
    "length(word) = 3 AND lower(word) = 'abc' AND upper(lower(word)) <> 'abc'",
    "kind IN ('k', 'l')",
    "ok = TRUE",
    "day = '2024-02-29' AND day < DATE '2024-03-01'",
    "at >= '2024-02-29' AND at < TIMESTAMP '2024-02-29 12:00:01' AND at > day",
    "zoned = '2024-02-29 12:00:00' AND zoned = '2024-02-29T06:00:00-06:00'",
    "zoned < TIMESTAMPTZ '2024-02-29 12:00:00.5Z'",
    "clock > '12:00'",
    "page.url LIKE 'http%' AND page.size IS NOT NULL",
    '"a.b" = 1',
]
NULL_HOLDS = [
    "whole IS NULL",
    "page IS NULL AND page.url IS NULL",
    "whole IS NULL OR whole = 8",
    "NOT word IS NOT NULL",
]
NEVER = ["whole = 8 AND ok", "whole <> 7", "NOT ok", "word LIKE 'a\\\\%'", "whole NOT IN (7)", "day > '2024-02-29'"]


@pytest.mark.parametrize("text", HOLDS)
def test_conditions_that_hold(text: str) -> None:
    where = parse_where(text)
    truth = where.condition.truth(BATCH).to_pylist()
    assert truth[0] is True and not truth[1]
    assert where.columns <= set(SCHEMA.names)


@pytest.mark.parametrize("text", NULL_HOLDS)
def test_conditions_that_hold_for_nulls_alone(text: str) -> None:
    assert parse_where(text).condition.truth(BATCH).to_pylist() == [False, True]


@pytest.mark.parametrize("text", NEVER)
def test_conditions_that_do_not_hold(text: str) -> None:
    """Nulls do not fulfil them either: in SQL, NULL is neither equal to 7 nor different from it."""
    assert not any(parse_where(text).condition.truth(BATCH).to_pylist())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a condition in SQL .it is empty.: write a condition such as"),
        ("whole =", "is not a condition in SQL .Required keyword"),
        ("whole + 1 = 8", r"--where has whole \+ 1, which is not supported: use =, <>"),
        ("year(day) = 2024", r"--where has YEAR\(day\), which is not supported"),
        ("whole = NULL", "--where has NULL, which is not supported: use .* IS NULL"),
        ("whole IN ()", r"--where has whole IN \(\)"),
        ("whole IN (SELECT 1)", r"--where has whole IN \(SELECT 1\)"),
        ("word LIKE 'A' ESCAPE 'x'", "--where has word LIKE 'A' ESCAPE 'x'"),
        ("word LIKE kind", "--where has word LIKE kind"),
        ("regexp_matches(word, 'A', 'i')", r"--where has REGEXP_MATCHES\(word, 'A', 'i'\)"),
        ("whole = 7; DROP TABLE x", "--where has whole = 7; DROP TABLE x"),
        ("count(*) > 1", r"--where has COUNT\(\*\)"),
        ("ok IS TRUE", "--where has ok IS TRUE"),
    ],
)
def test_texts_that_are_not_conditions(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("missing = 1", "--where uses missing, which the source lacks"),
        ("page.missing = 1", "--where uses page.missing, which"),
        ("whole = '7'", "--where compares int16 with string, which have no common type: use a literal"),
        ("word = 7", "--where compares large_string with int64"),
        ("page = 1", "--where compares struct<.*> with int64"),
        ("zoned > at", "--where compares timestamp.us, tz=America/Chicago. with timestamp.ns."),
        (
            "day = '2024-02-30'",
            "--where compares date32.day. with 2024-02-30, which is not a value of this type: write a date as",
        ),
        ("length(whole) = 1", "--where has length of int16: use it only with texts"),
        ("whole", "--where has whole, which is int16: compare it with a value"),
    ],
)
def test_conditions_that_do_not_fit_the_columns(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_where(text).condition.truth(BATCH.slice(0, 0))


# --- the data that are read ---------------------------------------------------------------------------------------


def chosen(directory: Path | str, text: str | None, limit: int | None = None) -> list[int]:
    """Returns the ids of the chosen rows: the same, whether files were judged when they were planned or later."""
    choice = Choice(text and parse_where(text), limit)
    found = []
    for where in (choice.where, None):
        source = read_source(str(directory), ("text",), where=where)
        choice.check(source)
        reader = SourceHandle.of(source, ("text",), ["id"]).open()
        files = choice.rows(source, source.files, ("text",), 0)
        batches = [batch for file in files for batch in reader.read(file.whole())]
        found.append([row for batch in batches for row in batch["id"].to_pylist()])
    assert found[0] == found[1]
    return found[0]


def test_each_footer_is_read_once_before_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot fulfil the condition is opened once; another one again for its rows."""
    for number in range(6):
        table = pa.table({"text": ["t", "t"], "n": [number, None]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    read: list[str] = []
    original = parquet.read_footer

    def counted(filesystem: fs.FileSystem, path: str) -> Any:
        read.append(Path(path).name)
        return original(filesystem, path)

    for module in (parquet, choice_module):
        monkeypatch.setattr(module, "read_footer", counted)
    choice = Choice(parse_where("n = 4"))
    source = read_source(str(tmp_path), ("text",), where=choice.where)
    assert [file.path for file in choice.rows(source, source.files, ("text",), 0)] == ["4.parquet"]
    assert sorted(read) == sorted([*(f"{number}.parquet" for number in range(6)), "4.parquet"])


VALUES = st.one_of(st.none(), st.integers(0, 9))
TABLES = st.lists(
    st.fixed_dictionaries({"n": VALUES, "s": st.one_of(st.none(), st.sampled_from("abcdef")), "x": VALUES}),
    min_size=1,
    max_size=40,
)
SQL: dict[str, Callable[[dict[str, Any]], bool]] = {
    "n = 4": lambda row: row["n"] == 4,
    "n < 3 OR s > 'e'": lambda row: (
        (row["n"] is not None and row["n"] < 3) or (row["s"] is not None and row["s"] > "e")
    ),
    "n >= 8 AND x IS NULL": lambda row: row["n"] is not None and row["n"] >= 8 and row["x"] is None,
    "n <= 0 AND x > 0": lambda row: None not in (row["n"], row["x"]) and row["n"] <= 0 and row["x"] > 0,
    "NOT (n = 4 OR n = 5)": lambda row: row["n"] is not None and row["n"] not in (4, 5),
    "n IN (1, 9) OR s IN ('a')": lambda row: row["n"] in (1, 9) or row["s"] == "a",
    "5 > n AND n <> 2": lambda row: row["n"] is not None and row["n"] < 5 and row["n"] != 2,
    "n IS NOT NULL AND s LIKE 'c%'": lambda row: row["n"] is not None and row["s"] == "c",
    "n = x": lambda row: row["n"] is not None and row["n"] == row["x"],
    "n BETWEEN 2 AND 3": lambda row: row["n"] in (2, 3),
}


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, text=st.sampled_from(list(SQL)), group=st.integers(1, 10), limit=st.none() | st.integers(1, 20))
def test_the_rows_for_which_it_holds_are_chosen(tmp_path_factory, rows, text, group, limit) -> None:
    """The rows do not depend on statistics of row groups, on other types in another file, or on the format."""
    directory = tmp_path_factory.mktemp("source")
    for number, row in enumerate(rows):
        row |= {"id": number, "text": "t"}
    fields = [("id", pa.int64()), ("text", pa.string()), ("n", pa.int8()), ("s", pa.string()), ("x", pa.int64())]
    half = len(rows) // 2
    first = pa.Table.from_pylist(rows[:half], pa.schema(fields))
    wider = pa.schema([*fields[:2], ("n", pa.int32()), ("s", pa.dictionary(pa.int8(), pa.string())), fields[4]])
    (directory / "p").mkdir()
    pq.write_table(first, directory / "p" / "a.parquet", row_group_size=group)
    pq.write_table(pa.Table.from_pylist(rows[half:], wider), directory / "p" / "b.parquet", row_group_size=group)
    (directory / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [row["id"] for row in rows if SQL[text](row)][:limit]
    assert chosen(directory / "p", text, limit) == expected
    if all(any(row[name] is not None for row in rows) for name in "nsx"):  # otherwise the columns have no types
        assert chosen(directory / "a.jsonl", text, limit) == expected


def write_pages(directory: Path) -> None:
    """Writes a file for each day, with an increasing `n` in row groups of ten."""
    for year in (2023, 2024):
        path = directory / f"year={year}" / "a.parquet"
        path.parent.mkdir(parents=True)
        ids = range((year - 2023) * 100, (year - 2022) * 100)
        at = [datetime(year, 1, 1) + timedelta(days=i % 100) for i in ids]
        table = pa.table({"id": ids, "text": ["t"] * 100, "n": [i % 100 for i in ids], "at": at})
        pq.write_table(table, path, row_group_size=10)


def spoil(path: Path, groups: range) -> None:
    """Overwrites the pages of row groups, so that reading them fails."""
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in groups:
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year = 2024 AND n >= 90", range(190, 200)),
        ("year >= 2024 AND n IN (91, 95, 99)", [191, 195, 199]),
        ("year = 2024 AND at >= '2024-04-01'", range(191, 200)),
        ("year = 2024 AND (n > 98 OR at = TIMESTAMP '2024-04-08')", [198, 199]),
    ],
)
def test_only_row_groups_and_partitions_that_can_hold_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: Any
) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 10)
    write_pages(tmp_path)
    spoil(tmp_path / "year=2023" / "a.parquet", range(10))
    spoil(tmp_path / "year=2024" / "a.parquet", range(9))
    assert chosen(tmp_path, text) == list(expected)


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    write_pages(tmp_path)
    assert chosen(tmp_path, None, 150) == list(range(150))
    assert chosen(tmp_path, None, 1000) == list(range(200))
    spoil(tmp_path / "year=2024" / "a.parquet", range(10))
    assert chosen(tmp_path, None, 100) == list(range(100))


def test_a_condition_on_a_table(tmp_path: Path) -> None:
    table = pa.table({"id": range(10), "text": ["t"] * 10, "day": ["a", "b"] * 5})
    write_deltalake(tmp_path / "table", table, partition_by=["day"])
    assert chosen(f"delta:{tmp_path}/table", "day = 'b' AND id > 3") == [5, 7, 9]


def test_lines_that_are_no_rows_are_chosen_with_their_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "t"}\n{broken\n{"id": 2, "text": "u"}\n')
    assert chosen(tmp_path, "id = 2") == [None, 2]


# --- the output ---------------------------------------------------------------------------------------------------


class Whole:
    """Finds one entity: the whole text."""

    def stream(self, requests, on_pass=None) -> Iterator[list[Entity]]:
        return ([Entity(0, len(text), text, "a", 0.5)] for text, _ in requests)


def request(directory: Path, text: str | None, limit: int | None = None, output: str = "out") -> Request:
    return Request(
        source=read_source(str(directory / "in"), ("text",)),
        output=locate(str(directory / output)),
        text_columns=("text",),
        settings=Settings.make(["a"]),
        model_name="m",
        model_fingerprint="f",
        precision="auto",
        unit_rows=7,
        layout=Layout(columns=("id",)),
        choice=Choice(text and parse_where(text), limit),
    )


def extract(asked: Request, units: slice = slice(None)) -> Ledger:
    ledger = prepare(asked)
    run_units(asked, ledger, Whole(), units)
    return read_ledger(asked.output)


def ids(path: Path) -> list[int]:
    return ds.dataset(path, format="parquet").to_table()["id"].to_pylist()


def contents(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {file.name: pq.read_table(file).to_pylist() for file in path.glob("*.parquet")}


def test_chosen_rows_are_extracted_once_and_a_run_continues(tmp_path: Path) -> None:
    write_pages(tmp_path / "in")
    asked = request(tmp_path, "n < 20 OR n = 50", limit=30)
    extract(asked, slice(2))
    assert not audit(read_ledger(asked.output)).complete
    ledger = extract(asked)
    result = audit(ledger)
    assert result.complete and result.source_rows == result.output_rows == ledger.manifest["source"]["rows"] == 30
    assert ids(tmp_path / "out") == [*range(20), 50, *range(100, 109)]
    assert (ledger.manifest["where"], ledger.manifest["limit"]) == ("n < 20 OR n = 50", 30)
    extract(replace(asked, output=locate(str(tmp_path / "again"))))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_another_choice_is_another_result(tmp_path: Path) -> None:
    write_pages(tmp_path / "in")
    extract(request(tmp_path, "n < 20", limit=30))
    with pytest.raises(UserError, match="where n < 20 in the output, n < 21 requested"):
        prepare(request(tmp_path, "n < 21", limit=30))
    with pytest.raises(
        UserError, match="where n < 20 in the output, none requested; limit 30 in the output, none requested"
    ):
        prepare(request(tmp_path, None))


def test_new_files_add_their_chosen_rows_up_to_the_limit(tmp_path: Path) -> None:
    write_pages(tmp_path / "later")
    (tmp_path / "in").mkdir()
    shutil.move(tmp_path / "later" / "year=2024", tmp_path / "in" / "year=2024")
    asked = request(tmp_path, "n < 10", limit=15)
    extract(asked)
    assert ids(tmp_path / "out") == list(range(100, 110))
    shutil.move(tmp_path / "later" / "year=2023", tmp_path / "in" / "year=2023")
    ledger = extract(request(tmp_path, "n < 10", limit=15))
    assert ids(tmp_path / "out") == [*range(5), *range(100, 110)] and audit(ledger).complete
    (tmp_path / "in" / "b.parquet").write_bytes((tmp_path / "in" / "year=2023" / "a.parquet").read_bytes())
    assert prepare(request(tmp_path, "n < 10", limit=15)).plan.equals(ledger.plan)


def test_a_condition_that_never_holds_gives_an_output_without_rows(tmp_path: Path) -> None:
    write_pages(tmp_path / "in")
    result = audit(extract(request(tmp_path, "n > 1000")))
    assert result.complete and result.output_rows == 0 and ids(tmp_path / "out") == []
