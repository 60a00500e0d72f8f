"""One transaction adds all rows to a table once, despite failures and concurrent runs. Real tables, without Ray."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import fs
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.utils.config import Config
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError
from spanlake.extraction.output import publish as publish_module
from spanlake.extraction.output.fit import check_values
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.plan import cut
from spanlake.extraction.output.publish import open_target, publish
from spanlake.extraction.output.target import TableOptions
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.inference.settings import Settings
from spanlake.redaction import Redaction
from spanlake.storage import locate

KINDS = ("delta", "iceberg")


class Whole:
    """Finds one entity: the whole text."""

    def stream(self, requests, on_pass=None):
        return ([Entity(0, len(text), text, "a", 0.5)] if text else [] for text, _ in requests)


@pytest.fixture(params=KINDS)
def table(request: pytest.FixtureRequest, tmp_path: Path, catalog: Catalog) -> tuple[str, Callable[[], pa.Table]]:
    """Returns the name of a table that does not exist yet, and a function that reads it with its own library."""
    if request.param == "delta":
        return f"delta:{tmp_path}/table", lambda: DeltaTable(tmp_path / "table").to_pyarrow_table()
    return "iceberg:lake.web.found", lambda: catalog.load_table("web.found").scan().to_arrow()


def write_source(directory: Path, name: str, first: int, rows: int) -> None:
    directory.mkdir(exist_ok=True)
    texts = [None if i % 5 == 3 else f"text {i}" for i in range(first, first + rows)]
    table = pa.table({"id": range(first, first + rows), "text": pa.array(texts, pa.string())})
    pq.write_table(table, directory / name)


def extract(tmp_path: Path, output: str = "out", units: slice = slice(None), layout: Layout | None = None) -> Ledger:
    request = Request(
        source=read_source(str(tmp_path / "source"), ("text",)),
        output=locate(str(tmp_path / output)),
        text_columns=("text",),
        settings=Settings.make(["a"]),
        model_name="m",
        model_fingerprint="f",
        precision="auto",
        unit_rows=4,
        layout=layout or Layout(),
    )
    ledger = prepare(request)
    run_units(request, ledger, Whole(), units)
    return read_ledger(request.output)


def without_null_lists(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row as pyiceberg reads it: with an empty list where the file has null."""
    return row | {"entities": row["entities"] or []}


def in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in another thread, because delta-rs cannot be called from inside its own call."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def ids(table: pa.Table) -> list[int]:
    return sorted(table.column("id").to_pylist())


def test_all_rows_in_one_transaction_and_no_row_again(tmp_path: Path, table: tuple[str, Callable]) -> None:
    name, read = table
    write_source(tmp_path / "source", "a.parquet", 0, 10)
    ledger = extract(tmp_path, units=slice(2))
    target = open_target(name, ledger.schema)
    with pytest.raises(ShortfallError, match="lacks units, so none were added"):
        publish(ledger, target)
    extract(tmp_path)
    assert publish(ledger, target) == 3
    rows = sorted(read().to_pylist(), key=lambda row: row["id"])
    units = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet")))
    assert [without_null_lists(row) for row in rows] == [without_null_lists(row) for row in units.to_pylist()]
    assert rows[3]["error"] == "text is null"
    assert publish(ledger, open_target(name, ledger.schema)) == 0 and ids(read()) == list(range(10))

    write_source(tmp_path / "source", "b.parquet", 10, 4)  # only the new rows are added
    ledger = extract(tmp_path)
    assert publish(ledger, target) == 1 and ids(read()) == list(range(14))
    assert publish(ledger, target) == 0

    other = extract(tmp_path, output="other")  # another output has other rows
    assert publish(other, target) == 4 and len(read()) == 28


def test_nothing_is_added_where_the_rows_break_off(
    tmp_path: Path, table: tuple[str, Callable], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, read = table
    write_source(tmp_path / "source", "a.parquet", 0, 10)
    ledger = extract(tmp_path)
    target = open_target(name, ledger.schema)
    path = max((tmp_path / "out").glob("*.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ShortfallError, match="did not accept the rows .* and the same command tries again"):
        publish(ledger, target)
    write_source(tmp_path, path.name, 0, 4)
    (tmp_path / path.name).rename(path)
    with pytest.raises(ShortfallError, match="is not the committed unit: run `spanlake audit`"):
        publish(ledger, target)
    if name.startswith("delta"):
        assert len(read()) == 0
    else:
        with pytest.raises(NoSuchTableError):
            read()
    assert not list((tmp_path / "warehouse").rglob("*.parquet"))
    path.write_bytes(content)
    assert publish(ledger, target) == 3 and ids(read()) == list(range(10))


@pytest.mark.parametrize("there", [False, True], ids=["a new table", "a table with rows"])
@pytest.mark.parametrize("moment", ["append", "rows"])
def test_two_that_publish_the_same_output_add_it_once(
    tmp_path: Path, table: tuple[str, Callable], monkeypatch: pytest.MonkeyPatch, moment: str, there: bool
) -> None:
    """The second run overtakes the first just before it reads the table's state, or while it writes rows."""
    name, read = table
    write_source(tmp_path / "source", "a.parquet", 0, 10)
    ledger = extract(tmp_path)
    if there:
        publish(extract(tmp_path, output="before"), open_target(name, ledger.schema))
    slow, fast = open_target(name, ledger.schema), open_target(name, ledger.schema)
    raced: list[bool] = []

    def overtake() -> None:
        if not raced:
            raced.append(True)
            assert in_a_thread(publish, ledger, fast) == 3

    def rows(*arguments: Any, original: Callable = publish_module._rows) -> Iterator[pa.RecordBatch]:
        for batch in original(*arguments):
            overtake()
            yield batch

    def append(*arguments: Any, original: Callable = slow.append) -> None:
        overtake()
        original(*arguments)

    if moment == "rows":
        monkeypatch.setattr(publish_module, "_rows", rows)
    else:
        monkeypatch.setattr(slow, "append", append)
    with pytest.raises(ShortfallError, match=r"added the same rows|did not accept the rows"):
        publish(ledger, slow)
    assert ids(read()) == sorted(list(range(10)) * (2 if there else 1))
    assert publish(ledger, slow) == 0


def test_another_writer_in_between_does_not_matter(
    tmp_path: Path, table: tuple[str, Callable], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, read = table
    write_source(tmp_path / "source", "a.parquet", 0, 10)
    ledger, other = extract(tmp_path), extract(tmp_path, output="other")
    target = open_target(name, ledger.schema)
    publish(extract(tmp_path, output="before"), target)
    original = publish_module._rows
    raced = []

    def rows(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in original(*arguments):
            if not raced:
                raced.append(True)
                assert in_a_thread(lambda: publish(other, open_target(name, ledger.schema))) == 3
            yield batch

    monkeypatch.setattr(publish_module, "_rows", rows)
    assert publish(ledger, target) == 3 and len(read()) == 30


def test_new_columns_are_added_to_the_table_if_asked(tmp_path: Path, table: tuple[str, Callable]) -> None:
    name, read = table
    write_source(tmp_path / "source", "a.parquet", 0, 4)
    ledger = extract(tmp_path)
    publish(ledger, open_target(name, ledger.schema))
    source = tmp_path / "source" / "a.parquet"
    more = pq.read_table(source).append_column("n", pa.array([1, 2, 3, 4], pa.uint8()))
    pq.write_table(more.append_column("kind", pa.array(["k"] * 4).dictionary_encode()), source)
    wider = extract(tmp_path, output="wider", layout=Layout(redaction=Redaction("label")))
    with pytest.raises(UserError, match="lacks the columns n, kind, redacted_text: give --evolve to add what it lacks"):
        open_target(name, wider.schema)
    publish(wider, open_target(name, wider.schema, options=TableOptions(evolve=True)))
    rows = sorted(read().to_pylist(), key=lambda row: (row["id"], row["n"] or 0))
    assert [row["n"] for row in rows[:2]] == [None, 1] and [row["kind"] for row in rows[:2]] == [None, "k"]
    assert [row["redacted_text"] for row in rows[:2]] == [None, "[A]"]


LOCAL = datetime(2024, 11, 3, 1, 30, 0, 250_000, ZoneInfo("America/Chicago"), fold=1)  # in the hour that occurs twice
INSTANT = datetime(2024, 11, 3, 7, 30, 0, 250_000, timezone.utc)
OTHER_TOOLS: dict[str, tuple[pa.DataType, Any, Any]] = {  # a type, a written value, and the value in a table
    "zoned": (pa.timestamp("us", "America/Chicago"), LOCAL, INSTANT),
    "nanoseconds": (pa.timestamp("ns"), 1_700_000_000_000_001_000, datetime(2023, 11, 14, 22, 13, 20, 1)),
    "zoned_ns": (pa.timestamp("ns", "+05:30"), LOCAL, INSTANT),
    "milliseconds": (pa.timestamp("ms"), datetime(9999, 12, 31), datetime(9999, 12, 31)),
    "fixed": (pa.binary(3), b"abc", b"abc"),
    "day": (pa.date64(), date(2024, 2, 29), date(2024, 2, 29)),
    "kind": (pa.dictionary(pa.int8(), pa.string()), "k", "k"),
    "kinds": (pa.list_(pa.dictionary(pa.int8(), pa.string())), ["k", None], ["k", None]),
    "large": (pa.large_string(), "l", "l"),
    "view": (pa.string_view(), "v", "v"),
    "pair": (pa.list_(pa.int8(), 2), [1, 2], [1, 2]),
    "unsigned": (pa.uint64(), 2**64 - 1, Decimal(2**64 - 1)),
    "short": (pa.int16(), -7, -7),
    "half": (pa.float16(), 0.5, 0.5),
    "price": (pa.decimal64(10, 2), Decimal("1.25"), Decimal("1.25")),
    "inner": (pa.struct([("at", pa.timestamp("ns", "Asia/Tokyo"))]), {"at": LOCAL}, {"at": INSTANT}),
}


def test_types_of_other_tools_reach_a_table_on_the_first_run_and_on_a_later_one(
    tmp_path: Path, table: tuple[str, Callable]
) -> None:
    name, read = table
    (tmp_path / "source").mkdir()
    columns = {name: pa.array([value], kind) for name, (kind, value, _) in OTHER_TOOLS.items()}
    for number in range(2):
        pq.write_table(pa.table({"text": ["t"], **columns}), tmp_path / "source" / f"{number}.parquet")
        source = read_source(str(tmp_path / "source"), ("text",))
        ledger = extract(tmp_path)
        check_values(name, source, ledger.schema)
        assert publish(ledger, open_target(name, ledger.schema)) == 1
        rows = read().to_pylist()
        assert len(rows) == number + 1
        for row in rows:
            found = {name: row[name] for name in OTHER_TOOLS}
            assert found == {name: value for name, (_, _, value) in OTHER_TOOLS.items()}
    assert read().schema.field("zoned").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("ns"), 1_700_000_000_000_001_001),
        (pa.timestamp("ms", "UTC"), 2**62),
        (pa.time64("ns"), 1),
        (pa.struct([("at", pa.list_(pa.timestamp("ns")))]), {"at": [0, 1]}),
    ],
    ids=str,
)
def test_a_time_that_a_table_cannot_hold_is_found_before_anything_is_extracted(
    tmp_path: Path, kind: pa.DataType, value: Any
) -> None:
    for number, values in enumerate(([None], [None, value])):
        taken = pa.array(values, kind)
        pq.write_table(pa.table({"text": ["t"] * len(values), "taken": taken}), tmp_path / f"{number}.parquet")
    source = read_source(str(tmp_path), ("text",))
    with pytest.raises(
        UserError, match=r"column taken of 1\.parquet has a time .* delta:t stores times in micro.*: round the times"
    ):
        check_values("delta:t", source, source.schema)
    check_values("delta:t", source, pa.schema([("text", pa.string())]))  # the output does not have the column


def test_a_table_takes_what_its_own_types_hold(tmp_path: Path, table: tuple[str, Callable], catalog: Catalog) -> None:
    name, read = table
    held = pa.schema([pa.field("text", pa.string()), pa.field("n", pa.int64()), pa.field("x", pa.float64())])
    if name.startswith("delta"):
        DeltaTable.create(tmp_path / "table", held)
    else:
        catalog.create_table("web.found", held)
    (tmp_path / "source").mkdir()
    narrow = {"n": pa.array([5], pa.int16()), "x": pa.array([0.5], pa.float32())}
    pq.write_table(pa.table({"text": ["t"], **narrow}), tmp_path / "source" / "a.parquet")
    ledger = extract(tmp_path)
    assert publish(ledger, open_target(name, ledger.schema, options=TableOptions(evolve=True))) == 1
    assert [(row["n"], row["x"]) for row in read().to_pylist()] == [(5, 0.5)]
    assert read().schema.field("n").type == pa.int64()


def test_all_columns_that_a_table_cannot_take_are_named(
    tmp_path: Path, table: tuple[str, Callable], catalog: Catalog
) -> None:
    name, _ = table
    held = pa.schema([pa.field("id", pa.int32()), pa.field("must", pa.string(), nullable=False), ("x", pa.float32())])
    if name.startswith("delta"):
        DeltaTable.create(tmp_path / "table", held)
    else:
        catalog.create_table("web.found", held)
    with pytest.raises(UserError) as caught:
        open_target(name, pa.schema([("id", pa.int64()), ("x", pa.float64())]))
    message = str(caught.value)
    assert message.startswith("The columns id is int32 in ") and "and int64 in the output" in message
    assert "; x is float in " in message and "; must is required in " in message
    with pytest.raises(UserError, match="must is required in .* and may be null in the output"):
        open_target(name, pa.schema([("must", pa.string())]))
    open_target(name, pa.schema([pa.field("must", pa.string(), nullable=False)]))


@pytest.mark.parametrize("kind", [pa.decimal256(40, 2), pa.list_view(pa.int8()), pa.struct([("a", pa.duration("s"))])])
def test_types_that_no_table_holds_are_refused_with_their_columns(tmp_path: Path, kind: pa.DataType) -> None:
    schema = pa.schema([("one", kind), ("two", kind)])
    with pytest.raises(UserError, match=r"cannot hold the types of the columns one \(.*\), two \(.*\): cast them"):
        open_target(f"delta:{tmp_path}/table", schema)


def test_names_that_differ_by_case_are_one_name_in_delta(tmp_path: Path, catalog: Catalog) -> None:
    name = f"delta:{tmp_path}/table"
    columns = pa.schema([("ID", pa.int64()), ("id", pa.int64())])
    with pytest.raises(UserError, match="table cannot hold both ID and id, because names in Delta ignore case"):
        open_target(name, columns)
    open_target("iceberg:lake.web.found", columns)
    inner = pa.schema([("page", pa.struct([("url", pa.string()), ("URL", pa.string())]))])
    with pytest.raises(UserError, match="cannot hold both url and URL"):
        open_target(name, inner)
    DeltaTable.create(tmp_path / "table", columns.remove(0))
    with pytest.raises(UserError, match="cannot hold both id and ID"):
        open_target(name, columns.remove(1), options=TableOptions(evolve=True))


def test_uuids_reach_a_table(tmp_path: Path, table: tuple[str, Callable]) -> None:
    name, read = table
    (tmp_path / "source").mkdir()
    keys = pa.array([bytes(range(16)), None], pa.uuid())
    pq.write_table(pa.table({"text": ["t", "u"], "key": keys}), tmp_path / "source" / "a.parquet")
    ledger = extract(tmp_path)
    assert [publish(ledger, open_target(name, ledger.schema)) for _ in range(2)] == [1, 0]
    found = [row["key"] for row in read().to_pylist()]
    assert [key and getattr(key, "bytes", key) for key in found] == [bytes(range(16)), None]


def test_a_type_that_only_delta_lacks_is_refused_with_its_column(tmp_path: Path, catalog: Catalog) -> None:
    schema = pa.schema([("id", pa.int64()), ("clock", pa.time64("us"))])
    with pytest.raises(UserError, match=r"A Delta table cannot hold the column clock of type time64\[us\]"):
        open_target(f"delta:{tmp_path}/table", schema)
    open_target("iceberg:lake.web.found", schema)


def test_a_table_as_source_and_as_target(tmp_path: Path, catalog: Catalog) -> None:
    """An output keeps the snapshot with which it began, so it does not contain rows that the table gains later."""
    write_deltalake(tmp_path / "in", pa.table({"id": [1, 2], "text": ["a", "b"]}))
    source = f"delta:{tmp_path}/in"
    values = {"output": locate(str(tmp_path / "out")), "text_columns": ("text",), "settings": Settings.make(["a"])}
    rest = {"model_name": "m", "model_fingerprint": "f", "precision": "auto", "unit_rows": 1}
    request = Request(source=read_source(source, ("text",)), **values, **rest)
    prepare(request).save()
    write_deltalake(tmp_path / "in", pa.table({"id": [3], "text": ["c"]}), mode="append")
    recorded = read_ledger(request.output).manifest["source"]["uri"]
    from spanlake.extraction.source.tables import pinned

    again = replace(request, source=read_source(pinned(source, recorded), ("text",)))
    ledger = prepare(again)
    assert ledger.plan.num_rows == 2 and ledger.manifest["source"]["uri"].endswith("/in@0")
    run_units(again, ledger, Whole())
    publish(ledger, open_target("iceberg:lake.web.found", ledger.schema))
    assert ids(catalog.load_table("web.found").scan().to_arrow()) == [1, 2]


def test_tables_that_cannot_take_an_output(tmp_path: Path, catalog: Catalog) -> None:
    schema = pa.schema([("id", pa.int64()), ("took", pa.duration("s"))])
    with pytest.raises(UserError, match=r"cannot hold the types of the column took \(duration\[s\]\)"):
        open_target(f"delta:{tmp_path}/table", schema)
    with pytest.raises(UserError, match="does not name a table"):
        open_target(str(tmp_path), schema)
    with pytest.raises(UserError, match="does not name a table"):
        open_target(f"delta:{tmp_path}/table@3", schema)
    schema = pa.schema([("id", pa.int64())])
    with pytest.raises(UserError, match="is the source itself"):
        open_target(f"delta:{tmp_path}/table", schema, f"delta:{tmp_path}/table@0")
    with pytest.raises(UserError, match="iceberg:lake.none.found cannot take the output"):
        open_target("iceberg:lake.none.found", schema)
    write_deltalake(tmp_path / "table", pa.table({"id": ["a string"]}))
    with pytest.raises(UserError, match="column id is string in delta:.* and int64 in the output"):
        open_target(f"delta:{tmp_path}/table", schema)


@pytest.fixture
def object_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Returns the address of a server with a bucket `lake`, in another process because delta-rs holds the GIL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    variables = {"ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in {**variables, "ENDPOINT_URL": address}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            options = {"endpoint_override": address.removeprefix("http://"), "scheme": "http"}
            fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("lake")
            yield address
        finally:
            server.terminate()


@pytest.mark.slow
def test_tables_in_object_storage(
    tmp_path: Path, catalog: Catalog, object_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", "s3://lake/warehouse")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__S3__ENDPOINT", object_storage)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    write_source(tmp_path / "source", "a.parquet", 0, 10)
    ledger = extract(tmp_path)
    for name in ("delta:s3://lake/found", "iceberg:lake.web.found"):
        target = open_target(name, ledger.schema)
        assert publish(ledger, target) == 3 and publish(ledger, target) == 0
    catalog = load_catalog("lake")
    assert ids(DeltaTable("s3://lake/found").to_pyarrow_table()) == list(range(10))
    assert ids(catalog.load_table("web.found").scan().to_arrow()) == list(range(10))

    rows = pa.table({"id": range(10), "text": [f"text {i}" for i in range(10)]})
    write_deltalake("s3://lake/texts", rows)
    catalog.create_table("web.texts", rows.schema).append(rows)
    for name in ("delta:s3://lake/texts", "iceberg:lake.web.texts"):
        source = read_source(name, ("text",))
        reader = SourceHandle.of(source, ("text",)).open()
        batches = [batch for file in source.files for unit in cut(file, 4) for batch in reader.read(unit)]
        assert ids(pa.Table.from_batches(batches)) == list(range(10))
