"""Layouts of an output: redacted texts, chosen columns, one row for each mention; and the audit of each."""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from units import run_units

from spanlake import cli
from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.options import add_layout_options, read_layout
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.rows import FOOTER_KEY
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.redaction import STYLES, Redaction
from spanlake.storage import locate

TEXTS = ["Ada met Bob", None, "nobody", "", "Éva 😀 Ida"]


class Capitals:
    """Finds capitalised words. Short words are `a`, others are `b`."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, _ in requests:
            yield [
                Entity(match.start(), match.end(), match.group(), "a" if match.end() < 4 else "b", 0.75)
                for match in re.finditer(r"[A-ZÉ]\w*", text)
            ]


def make_request(tmp_path: Path, layout: Layout, table: pa.Table | None = None, unit_rows: int = 3) -> Request:
    table = pa.table({"id": range(5), "text": TEXTS, "more": list("vwxyz")}) if table is None else table
    (tmp_path / "source").mkdir(exist_ok=True)
    pq.write_table(table, tmp_path / "source" / "a.parquet")
    return Request(
        source=read_source(str(tmp_path / "source"), ("text",)),
        output=locate(str(tmp_path / "out")),
        text_columns=("text",),
        settings=Settings.make(["a", "b"]),
        model_name="m",
        model_fingerprint="f" * 64,
        precision="auto",
        unit_rows=unit_rows,
        layout=layout,
    )


def extract(request: Request) -> Ledger:
    """Returns the output of a request, made without Ray."""
    ledger = prepare(request)
    run_units(request, ledger, Capitals())
    ledger.clean()
    return read_ledger(request.output)


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))).to_pylist()


# --- redacted -----------------------------------------------------------------------------------------------------


def test_redacted_text_is_a_column_after_the_source(tmp_path: Path) -> None:
    ledger = extract(make_request(tmp_path, Layout(redaction=Redaction("label"))))
    found = rows(tmp_path)
    assert list(found[0]) == ["id", "text", "more", "redacted_text", "entities", "error"]
    assert [row["text"] for row in found] == TEXTS
    assert [row["redacted_text"] for row in found] == ["[A] met [B]", None, "nobody", "", "[A] 😀 [B]"]
    assert audit(ledger).complete


def test_dropping_the_text_leaves_nothing_of_it(tmp_path: Path) -> None:
    key = b"0123456789abcdef"
    ledger = extract(make_request(tmp_path, Layout(redaction=Redaction("hash", key), drop_text=True)))
    found = rows(tmp_path)
    assert list(found[0]) == ["id", "more", "redacted_text", "entities", "error"]
    first = found[0]
    assert first["redacted_text"] == f"{first['entities'][0]['text']} met {first['entities'][1]['text']}"
    assert [(entity["start"], entity["end"]) for entity in first["entities"]] == [(0, 3), (8, 11)]
    for file in (tmp_path / "out").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert not any(word in content for word in (b"Ada", b"Bob", "Éva".encode(), key))
    assert audit(ledger).complete


def test_another_redaction_is_another_result(tmp_path: Path) -> None:
    extract(make_request(tmp_path, Layout(redaction=Redaction("hash", b"0123456789abcdef"))))
    with pytest.raises(UserError, match="redact hash in the output, none requested"):
        prepare(make_request(tmp_path, Layout()))
    with pytest.raises(UserError, match=r"redaction key with digest \w+ in the output, \w+ requested"):
        prepare(make_request(tmp_path, Layout(redaction=Redaction("hash", b"another key of 16+"))))
    assert prepare(make_request(tmp_path, Layout(redaction=Redaction("hash", b"0123456789abcdef"))))


# --- columns ------------------------------------------------------------------------------------------------------


def options(*arguments: str) -> Layout:
    parser = argparse.ArgumentParser()
    add_layout_options(parser)
    return read_layout(parser.parse_args(arguments))


def test_chosen_columns_keep_the_requested_order(tmp_path: Path) -> None:
    request = make_request(tmp_path, Layout(columns=("more", "id")))
    ledger = extract(request)
    found = rows(tmp_path)
    assert [list(row) for row in found] == [["more", "id", "entities", "error"]] * 5
    assert [(row["more"], row["id"]) for row in found] == list(zip("vwxyz", range(5), strict=True))
    assert found[0]["entities"][0]["text"] == "Ada" and found[1]["error"] == "text is null"
    assert audit(ledger).complete
    with pytest.raises(UserError, match="columns more, id in the output, all requested"):
        prepare(make_request(tmp_path, Layout()))
    with pytest.raises(UserError, match="columns more, id in the output, id, more requested"):
        prepare(make_request(tmp_path, Layout(columns=("id", "more"))))


def test_columns_that_are_not_chosen_have_no_effect(tmp_path: Path) -> None:
    """Unread columns may have different types, names that the output adds, and damaged pages."""
    (tmp_path / "in" / "year=2024").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["Ada"], "n": [1], "error": ["e"]}), tmp_path / "in" / "year=2024" / "a.parquet")
    pq.write_table(pa.table({"text": ["Bob"], "n": ["one"], "id": [7]}), tmp_path / "in" / "b.parquet")
    with pytest.raises(UserError, match="already has a column called error"):
        read_source(str(tmp_path / "in"), ("text",))
    source = read_source(str(tmp_path / "in"), ("text",), frozenset({"id", "year"}))
    assert source.schema.names == ["text", "id", "year"]
    with pytest.raises(UserError, match=r"no column called day: name some of its columns \(text, n, id, error, year\)"):
        read_source(str(tmp_path / "in"), ("text",), frozenset({"day"}))

    path = tmp_path / "in" / "b.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(1)
    start = chunk.dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    request = replace(make_request(tmp_path, Layout(columns=("id", "year"))), source=source)
    assert audit(extract(request)).complete
    assert [(row["id"], row["year"]) for row in rows(tmp_path)] == [(7, None), (None, 2024)]


@pytest.mark.parametrize(
    ("columns", "names"), [("id", ("id",)), ('id, "a, b",id', ("id", "a, b"))], ids=["one", "several"]
)
def test_columns_on_the_command_line(columns: str, names: tuple[str, ...]) -> None:
    assert options("--columns", columns).columns == names
    assert options().columns is None


def test_columns_that_cannot_be_chosen() -> None:
    with pytest.raises(UserError, match="'id,,b' lacks a name"):
        options("--columns", "id,,b")
    with pytest.raises(UserError, match="'\"id' cannot be told apart"):
        options("--columns", '"id')
    with pytest.raises(UserError, match="--columns belongs to the nested layout"):
        options("--columns", "id", "--layout", "mentions")


# --- mentions -----------------------------------------------------------------------------------------------------


def test_mentions_have_the_key_of_their_row(tmp_path: Path) -> None:
    ledger = extract(make_request(tmp_path, Layout(kind="mentions", keys=("id",))))
    mention = {"source_file": "a.parquet", "score": 0.75, "error": None}
    nothing = {"start": None, "end": None, "text": None, "label": None, "score": None}
    assert rows(tmp_path) == [
        {**mention, "source_row": 0, "id": 0, "start": 0, "end": 3, "text": "Ada", "label": "a"},
        {**mention, "source_row": 0, "id": 0, "start": 8, "end": 11, "text": "Bob", "label": "b"},
        {**mention, **nothing, "source_row": 1, "id": 1, "error": "text is null"},
        {**mention, "source_row": 4, "id": 4, "start": 0, "end": 3, "text": "Éva", "label": "a"},
        {**mention, "source_row": 4, "id": 4, "start": 6, "end": 9, "text": "Ida", "label": "b"},
    ]
    result = audit(ledger)
    assert result.complete and result.output_rows == result.source_rows == 5 and result.failed_rows == 1
    assert result.by_label == {"a": 2, "b": 2}


def tamper(path: Path, change: Any) -> None:
    """Replaces the rows of a unit and keeps its footer."""
    table = change(pq.read_table(path))
    footer = pq.read_metadata(path).metadata[FOOTER_KEY]
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), path)


def other_rows(table: pa.Table) -> pa.Table:
    return table.set_column(1, table.schema.field(1), pa.array([100 + row for row in range(len(table))], pa.int64()))


@pytest.mark.parametrize(
    "change",
    [lambda table: table.slice(1), lambda table: pa.concat_tables([table, table.slice(0, 1)]), other_rows],
    ids=["a mention is gone", "a mention is doubled", "mentions of rows of another unit"],
)
def test_an_audit_finds_what_is_wrong_with_mentions(tmp_path: Path, change: Any) -> None:
    ledger = extract(make_request(tmp_path, Layout(kind="mentions")))
    tamper(min((tmp_path / "out").glob("*.parquet")), change)
    result = audit(ledger)
    assert not result.complete and result.missing_rows == 2 and len(result.problems) == 2


def test_a_unit_without_mentions_counts_its_rows(tmp_path: Path) -> None:
    table = pa.table({"text": ["nothing", "here", "at all", "too"]})
    ledger = extract(make_request(tmp_path, Layout(kind="mentions"), table))
    assert rows(tmp_path) == []
    result = audit(ledger)
    assert result.complete and result.output_rows == 4 and json.dumps(result.as_json({}))
    next((tmp_path / "out").glob("*.parquet")).unlink()
    assert not audit(ledger).complete


# --- refused ------------------------------------------------------------------------------------------------------


def test_layouts_that_cannot_be() -> None:
    with pytest.raises(UserError, match="--key belongs to --layout mentions"):
        Layout(keys=("id",))
    with pytest.raises(UserError, match="--redact adds the redacted text of each row"):
        Layout(kind="mentions", redaction=Redaction("label"))
    with pytest.raises(UserError, match="--drop-text leaves out what --redact replaces"):
        Layout(drop_text=True)


def test_columns_that_a_layout_cannot_have() -> None:
    source = pa.schema([("text", pa.string()), ("score", pa.int64()), ("redacted_text", pa.string())])
    with pytest.raises(UserError, match="--key nothing is not a column of the source"):
        Layout(kind="mentions", keys=("nothing",)).check(source, ("text",))
    with pytest.raises(UserError, match="column score has a name that the output adds"):
        Layout(kind="mentions", keys=("score",)).check(source, ("text",))
    with pytest.raises(UserError, match="column redacted_text has a name"):
        Layout(redaction=Redaction("mask")).check(source, ("text",))
    body = pa.schema([("body", pa.string())])
    with pytest.raises(UserError, match="--key body is the text that --drop-text leaves out"):
        Layout(kind="mentions", keys=("body",), redaction=Redaction("mask"), drop_text=True).check(body, ("body",))
    Layout().check(source, ("text",))


REFUSED = [
    (["--redact", "hash"], "set SPANLAKE_REDACTION_KEY, or give --redact-key-file FILE"),
    (["--redact", "mask", "--redact-key-file", "key"], "--redact-key-file belongs to --redact hash"),
    (["--redact", "words"], "invalid choice: 'words'"),
    (["--key", "id"], "--key belongs to --layout mentions"),
    (["--drop-text"], "--drop-text leaves out what --redact replaces"),
    (["--layout", "mentions", "--key", "nothing"], "--key nothing is not a column of the source: give one of id, text"),
    (["--into", "somewhere"], "--into somewhere does not name a table"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_the_command_refuses_before_it_writes(
    tmp_path: Path,
    tiny_model_dir: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SPANLAKE_REDACTION_KEY", raising=False)
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    call = ["extract", str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--labels", "a"]
    try:
        code = cli.main([*call, "--model", str(tiny_model_dir), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_offers_every_style() -> None:
    parser = argparse.ArgumentParser()
    add_layout_options(parser)
    for style in STYLES:
        assert parser.parse_args(["--redact", style]).redact == style
