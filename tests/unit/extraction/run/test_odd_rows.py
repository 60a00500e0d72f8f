"""The results of unusual rows, columns and files."""

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from units import run_units

from spanlake import Entity
from spanlake.errors import UserError
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Request, prepare
from spanlake.extraction.output.show import glance
from spanlake.extraction.output.statistics import gather
from spanlake.extraction.source.model import SourceReadError
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.redaction import Redaction
from spanlake.storage import locate


class Capitals:
    """Finds capitalised words."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, _ in requests:
            yield [Entity(m.start(), m.end(), m.group(), "name", 0.75) for m in re.finditer(r"[A-ZÉ]\w*", text)]


def extract(source: Path, output: Path, column: str = "text", layout: Layout | None = None) -> Any:
    """Returns the ledger of an output with every unit committed."""
    settings, layout = Settings.make(["name"]), layout or Layout()
    found = read_source(str(source), (column,))
    layout.check(found.schema, (column,))
    request = Request(found, locate(str(output)), (column,), settings, "m", "f", "auto", 100, layout)
    ledger = prepare(request)
    run_units(request, ledger, Capitals())
    assert audit(ledger).complete
    return ledger


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def names(row: dict[str, Any]) -> list[str] | None:
    return row["entities"] and [entity["text"] for entity in row["entities"]]


def test_a_text_inside_structs(tmp_path: Path) -> None:
    pages = [
        {"body": {"en": "Ada wrote"}, "n": 1},
        {"body": None, "n": 2},
        None,
        {"body": {"en": "to Babbage"}, "n": 4},
    ]
    pq.write_table(pa.table({"page": pages}), tmp_path / "a.parquet")
    ledger = extract(tmp_path / "a.parquet", tmp_path / "out", "page.body.en")
    found = rows(tmp_path / "out")
    assert [row["page"] for row in found] == pages
    assert [names(row) for row in found] == [["Ada"], None, None, ["Babbage"]]
    assert [row["error"] for row in found] == [None, "text is null", "text is null", None]
    assert [passage.text for passage in glance(ledger, 2).passages] == ["Ada wrote", "to Babbage"]
    assert gather(ledger).failed_rows == 2


def test_a_column_whose_own_name_has_a_dot(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": ["Ada"], "a": [{"b": "Babbage"}]}), tmp_path / "a.parquet")
    extract(tmp_path / "a.parquet", tmp_path / "out", "a.b")
    assert names(rows(tmp_path / "out")[0]) == ["Ada"]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    table = pa.table({"page": [{"body": "x", "size": 1}], "tags": [["x"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    for path in ("page.title", "page.body.en", "tags.item", "page.", "."):
        with pytest.raises(UserError, match=r"has no column called .* text columns \(page\.body\)"):
            read_source(str(tmp_path), (path,))
    for path, kind in (("page", "struct"), ("page.size", "int64"), ("tags", "list")):
        with pytest.raises(UserError, match=rf"{path} holds {kind}.*, not text"):
            read_source(str(tmp_path), (path,))
    with pytest.raises(UserError, match=r"page\.body is a part of one"):
        layout = Layout(redaction=Redaction("label"), drop_text=True)
        extract(tmp_path, tmp_path / "out", "page.body", layout)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_are_read_as_utf8(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["Émile met Zoë".encode(), b"Caf\xe9 Noir", None, b"lone \xed\xa0\x80", b""]
    pq.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
    ledger = extract(tmp_path / "a.parquet", tmp_path / "out", layout=Layout(redaction=Redaction("mask")))
    found = rows(tmp_path / "out")
    assert [row["text"] for row in found] == values
    assert [names(row) for row in found] == [["Émile", "Zoë"], None, None, None, []]
    assert [row["error"] for row in found] == [
        None,
        "text is not valid UTF-8 (byte 3)",
        "text is null",
        "text is not valid UTF-8 (byte 5)",
        None,
    ]
    assert [row["redacted_text"] for row in found] == ["[REDACTED] met [REDACTED]", None, None, None, ""]
    assert [passage.text for passage in glance(ledger, 1).passages] == ["Émile met Zoë"]
    assert gather(ledger).failed_rows == 3


def test_strings_that_are_not_utf8(tmp_path: Path) -> None:
    """Columns of strings may have lone surrogates and other bytes, because some writers do not check them."""
    values = pa.array([b"Ada", b"lone \xed\xa0\x80", b"Caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    extract(tmp_path / "a.parquet", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_table(path)["error"].to_pylist() == [
        None,
        "text is not valid UTF-8 (byte 5)",
        "text is not valid UTF-8 (byte 3)",
    ]


@pytest.mark.slow
def test_a_row_of_ten_megabytes_among_small_ones(tmp_path: Path) -> None:
    large = "Ada went home. " * 700_000
    pq.write_table(pa.table({"text": ["Babbage", large, "Curie"]}), tmp_path / "a.parquet")
    extract(tmp_path / "a.parquet", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [len(row["entities"]) for row in found] == [1, 700_000, 1]
    last = found[1]["entities"][-1]
    assert large[last["start"] : last["end"]] == "Ada"


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for place in ("year=2024/lang=en", "year=2025/lang=pt%2FBR", "year=2025/lang=__HIVE_DEFAULT_PARTITION__"):
        (source / place).mkdir(parents=True)
        pq.write_table(pa.table({"text": [f"Ada in {place}"]}), source / place / "a.parquet")
    extract(source, tmp_path / "out")
    assert {row["text"]: (row["year"], row["lang"]) for row in rows(tmp_path / "out")} == {
        "Ada in year=2024/lang=en": (2024, "en"),
        "Ada in year=2025/lang=pt%2FBR": (2025, "pt/BR"),
        "Ada in year=2025/lang=__HIVE_DEFAULT_PARTITION__": (2025, None),
    }


def test_a_partition_whose_name_begins_with_an_underscore_hides_no_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for place in ("_year=2023/a.parquet", "_year=2024/a.parquet", "c.parquet"):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"Ada in {place}"]}), source / place)
    extract(source, tmp_path / "out")
    assert {row["text"]: row["_year"] for row in rows(tmp_path / "out")} == {
        "Ada in _year=2023/a.parquet": 2023,
        "Ada in _year=2024/a.parquet": 2024,
        "Ada in c.parquet": None,
    }


def test_partitions_that_are_not_numbers_or_are_also_columns_of_the_files(tmp_path: Path) -> None:
    for place, year in (("day=01", 1), ("day=02", 2)):
        (tmp_path / place).mkdir()
        pq.write_table(pa.table({"text": ["Ada"], "year": [year]}), tmp_path / place / "a.parquet")
    (tmp_path / "year=1999").mkdir()
    pq.write_table(pa.table({"text": ["Ada"], "year": [3]}), tmp_path / "year=1999" / "a.parquet")
    found = read_source(str(tmp_path), ("text",))
    assert found.schema == pa.schema([("text", pa.string()), ("year", pa.int64()), ("day", pa.string())])
    extract(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    found = rows(tmp_path.parent / f"{tmp_path.name}-out")
    assert sorted((row["year"], row["day"]) for row in found if row["day"]) == [(1, "01"), (2, "02")]
    assert [row["year"] for row in found if row["day"] is None] == [3]


def test_a_partition_with_the_name_of_an_added_column(tmp_path: Path) -> None:
    (tmp_path / "error=1").mkdir()
    pq.write_table(pa.table({"text": ["Ada"]}), tmp_path / "error=1" / "a.parquet")
    with pytest.raises(UserError, match="partitioned by error"):
        read_source(str(tmp_path), ("text",))


class Vault(pe.KmsClient):
    """Returns keys unchanged, which is enough to write an encrypted file."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def write_encrypted(path: Path, plaintext_footer: bool) -> None:
    table = pa.table({"text": ["Ada"]})
    keys = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["text"]}, plaintext_footer=plaintext_footer
    )
    properties = pe.CryptoFactory(lambda _: Vault()).file_encryption_properties(pe.KmsConnectionConfig(), keys)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def test_an_encrypted_file(tmp_path: Path) -> None:
    write_encrypted(tmp_path / "a.parquet", plaintext_footer=False)
    with pytest.raises(UserError, match=r"a\.parquet is an encrypted Parquet file.*decrypt it first"):
        read_source(str(tmp_path), ("text",))


def test_an_encrypted_column_behind_a_readable_footer(tmp_path: Path) -> None:
    write_encrypted(tmp_path / "a.parquet", plaintext_footer=True)
    with pytest.raises(SourceReadError, match=r"rows 0 to 1 of a\.parquet cannot be read"):
        extract(tmp_path / "a.parquet", tmp_path / "out")
