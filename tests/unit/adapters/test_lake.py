"""A directory that pandas, Polars, DuckDB and Spark have written is one source, and one run extracts it."""

from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from units import run_units

from spanlake.decoding import Entity
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import Request, prepare
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.storage import locate

WRITERS = ("pandas", "polars", "duckdb", "spark")
ROWS_OF_ONE = 2


def rows(writer: str) -> list[dict[str, Any]]:
    return [
        {
            "id": 10 * WRITERS.index(writer) + number,
            "text": f"{writer} speaks of Zoe\u0308 in München",
            "tag": ["a", None][number],
            "day": date(2024, 2, 29),
            "at": datetime(2024, 3, 10, 2, 30, 0, 123_456),
            "price": Decimal("12.50"),
            "page": {"url": "u", "size": number},
            "links": ["x", "y"],
        }
        for number in range(ROWS_OF_ONE)
    ]


@pytest.fixture
def tables(library: Callable[[str, str], ModuleType], spark: Any) -> dict[str, Any]:
    """Returns the rows of each writer as its own table. The integers of pandas are narrower than those of others."""
    pandas, polars = library("pandas", "pandas"), library("polars", "polars")
    duckdb = library("duckdb", "dev")
    kinds = "id int, text string, tag string, day date, at timestamp, price decimal(10,2)"
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    wide = spark.createDataFrame(rows("spark"), f"{kinds}, page struct<url string, size bigint>, links array<string>")
    frame = pandas.DataFrame(rows("pandas")).astype({"id": "int16", "tag": "category"})
    connection = duckdb.connect()
    connection.register("narrow", polars.DataFrame(rows("duckdb")).to_arrow())
    sql = "SELECT * REPLACE (id::INTEGER AS id, price::DECIMAL(10, 2) AS price) FROM narrow"
    return {
        "pandas": frame,
        "polars": polars.DataFrame(rows("polars"), schema_overrides={"price": polars.Decimal(10, 2)}),
        "duckdb": connection.sql(sql),
        "spark": wide.coalesce(1),
    }


class Zoe:
    def stream(self, requests: Any, on_pass: object = None) -> Iterator[list[Entity]]:
        for text, _ in requests:
            start = text.index("Zoe")
            yield [Entity(start, start + 4, text[start : start + 4], "person", 0.75)]


def extract(lake: Path, output: Path) -> tuple[Request, list[dict[str, Any]]]:
    source = read_source(str(lake), ("text",))
    request = Request(source, locate(str(output)), ("text",), Settings.make(["person"]), "m", "f", "auto", 100)
    ledger = prepare(request)
    run_units(request, ledger, Zoe())
    result = audit(ledger)
    assert result.complete and result.by_label == {"person": ROWS_OF_ONE * len(WRITERS)}, result.problems
    found = [row for path in output.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return request, sorted(found, key=lambda row: row["id"])


def test_parquet_of_four_writers(tables: dict[str, Any], tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    tables["spark"].write.parquet(str(lake))
    tables["pandas"].to_parquet(lake / "pandas.parquet")
    tables["polars"].write_parquet(lake / "polars.parquet")
    tables["duckdb"].write_parquet(str(lake / "duckdb.parquet"))
    request, found = extract(lake, tmp_path / "out")
    names = [path.rsplit("/")[-1] for path in request.source.ignored]
    assert "_SUCCESS" in names and all(name.startswith(("_", ".")) for name in names)
    added = [{name: row.pop(name) for name in ("entities", "error")} for row in found]
    assert found == [row for writer in WRITERS for row in rows(writer)]
    assert all(row["entities"][0]["text"] == "Zoe\u0308" and row["error"] is None for row in added)


def test_json_lines_of_four_writers(tables: dict[str, Any], tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    tables["spark"].write.json(str(lake), compression="gzip")
    tables["pandas"].drop(columns=["price"]).to_json(
        lake / "pandas.json", orient="records", lines=True, date_format="iso"
    )
    tables["polars"].write_ndjson(lake / "polars.json")
    tables["duckdb"].to_table("found")
    tables["duckdb"].query("found", f"COPY found TO '{lake}/duckdb.json' (FORMAT json)")
    request, found = extract(lake, tmp_path / "out")
    assert request.source.format == "json" and request.source.ignored
    assert [(row["id"], row["text"], row["tag"]) for row in found] == [
        (row["id"], row["text"], row["tag"]) for writer in WRITERS for row in rows(writer)
    ]
