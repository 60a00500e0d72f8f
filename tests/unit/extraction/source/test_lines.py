"""JSON lines and CSV: every line is a row, and the types of columns depend only on the lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import Request, prepare, read_ledger
from spanlake.extraction.output.plan import cut
from spanlake.extraction.source.model import Source, SourceReadError
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.inference.settings import Settings
from spanlake.storage import locate


def read_all(source: Source, unit_rows: int = 3) -> list[dict[str, Any]]:
    reader = SourceHandle.of(source, ("text",)).open()
    units = [unit for file in source.files for unit in cut(file, unit_rows)]
    read = {unit.name: [row for batch in reader.read(unit) for row in batch.to_pylist()] for unit in reversed(units)}
    return [row for unit in units for row in read[unit.name]]


def source_of(directory: Path, **files: bytes | str) -> Source:
    for name, content in files.items():
        path = directory / name.replace("_", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_source(str(directory), ("text",))


# --- JSON lines ---------------------------------------------------------------------------------------------------


def test_columns_of_json_lines_have_the_types_of_their_values(tmp_path: Path) -> None:
    lines = [
        {"text": "one", "n": 1, "x": 1, "flag": True, "mixed": "a", "long": 2**62, "tags": ["p", "é"]},
        {"text": "two", "n": 2, "x": 2.5, "flag": None, "mixed": 5, "long": 1, "big": 2**70},
    ]
    source = source_of(tmp_path, a_jsonl="\n".join(json.dumps(line) for line in lines))
    types = {"text": "string", "n": "int64", "x": "double", "flag": "bool", "mixed": "string", "long": "int64"}
    assert {field.name: str(field.type) for field in source.schema} == types | {"tags": "string", "big": "string"}
    one, two = read_all(source)
    assert one["mixed"] == '"a"' and two["mixed"] == "5"  # JSON, so that both kinds stay distinct
    assert one["tags"] == '["p", "é"]' and two["tags"] is None and two["big"] == str(2**70)
    assert (one["x"], two["x"], one["long"]) == (1.0, 2.5, 2**62)


BAD = [
    (b'{"text": "cut', "line is not JSON"),
    (b'["text"]', "not an object"),
    (b'{"text": "\xff"}', "not valid UTF-8 (byte 10)"),
    (b'{"text": "a", "text": "b"}', "name twice"),
    (b'{"text": 5}', "text is not a string but the JSON 5"),
    (b"[" * 100_000, "line is not JSON"),
    (b'{"text": "t", "deep": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper than 100"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_line_is_a_row_with_the_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    content = b'\xef\xbb\xbf{"text": "first"}\r\n\n   \n' + line + b'\n{"text": "last \\ud83d\\ude00 \\ud800"}'
    first, bad, last = read_all(source_of(tmp_path, a_jsonl=content))
    assert first["text"] == "first" and first["spanlake read error"] is None
    assert reason in bad["spanlake read error"]
    assert last["text"] == "last 😀 \ufffd"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(
    st.fixed_dictionaries({"text": st.text(max_size=20)}, optional=dict.fromkeys("abc", VALUES)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, unit_rows=st.integers(1, 5), compressed=st.booleans())
def test_every_value_comes_back(tmp_path_factory, rows: list[dict[str, Any]], unit_rows: int, compressed: bool) -> None:
    directory = tmp_path_factory.mktemp("source")
    content = "".join(json.dumps(row, ensure_ascii=len(row) % 2 == 0) + "\n" for row in rows)
    content_bytes = content.encode("utf-8", "replace")
    (directory / f"a.jsonl{'.gz' if compressed else ''}").write_bytes(
        gzip.compress(content_bytes) if compressed else content_bytes
    )
    source = read_source(str(directory), ("text",))
    found = read_all(source, unit_rows)
    assert len(found) == len(rows)
    for row, read in zip(rows, found, strict=True):
        assert read["spanlake read error"] is None
        for name, value in row.items():
            as_json = source.schema.field(name).metadata is not None and value is not None
            assert (json.loads(read[name]) if as_json else read[name]) == value
    pq.write_table(pa.Table.from_pylist(found, source.schema), directory / "written")  # all types can be


@pytest.mark.parametrize("name", ["part-00000-1f-c000.json", "part-00000-1f-c000.json.gz", "sub/part-1.json"])
def test_spark_writes_json_lines_under_the_name_of_json(tmp_path: Path, name: str) -> None:
    content = b'{"text":"one","id":1}\n{"text":"two","id":2}\n'
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for ignored in ("_SUCCESS", f".{path.name}.crc", "README.md"):
        (tmp_path / ignored).write_bytes(b"")
    for source in (read_source(str(tmp_path), ("text",)), read_source(str(path), ("text",))):
        assert [row["text"] for row in read_all(source)] == ["one", "two"]
    assert read_source(str(tmp_path), ("text",)).ignored == ("README.md", f".{path.name}.crc", "_SUCCESS")


def test_a_file_of_any_name_is_read_by_its_content(tmp_path: Path) -> None:
    table = pa.table({"text": ["one"]})
    pq.write_table(table, tmp_path / "part-0")
    (tmp_path / "part-1").write_text(' \n{"text": "two"}\n')
    (tmp_path / "part-2").write_text("three")
    assert [row["text"] for row in read_all(read_source(str(tmp_path / "part-0"), ("text",)))] == ["one"]
    assert [row["text"] for row in read_all(read_source(str(tmp_path / "part-1"), ("text",)))] == ["two"]
    with pytest.raises(UserError, match="part-2 is not a whole Parquet file"):
        read_source(str(tmp_path / "part-2"), ("text",))
    source = read_source(str(tmp_path / "part-*"), ("text",))
    assert [file.path for file in source.files] == ["part-0"] and source.ignored == ("part-1", "part-2")


def test_json_beside_files_of_another_format_is_not_read(tmp_path: Path) -> None:
    source = source_of(tmp_path, a_jsonl='{"text": "row"}', dataset_info_json='{"splits": 1}')
    assert [row["text"] for row in read_all(source)] == ["row"] and source.ignored == ("dataset.info.json",)


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ('[{"text": "one"},\n {"text": "two"}]', "jq -c '.[]'"),
        ("[\n  {}\n]", "jq -c '.[]'"),
        ("[ ]", "jq -c '.[]'"),
        ('{\n "text": 1\n}', "jq -c ."),
    ],
)
def test_the_message_about_one_json_document_says_how_to_convert_it(tmp_path: Path, content: str, command: str) -> None:
    path = tmp_path / "pages.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is one JSON document over all of its lines") as caught:
        read_source(str(path), ("text",))
    assert f"`{command} {path}`" in str(caught.value)


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_csv_is_read_as_strings(tmp_path: Path) -> None:
    content = '\ufeffid,text\n1,"a ""quoted"", text\nof two lines"\n\n2,\n03,ü\r\n'
    rows = read_all(source_of(tmp_path, a_csv=content), unit_rows=1)
    assert [(row["id"], row["text"]) for row in rows] == [
        ("1", 'a "quoted", text\nof two lines'),
        ("2", ""),
        ("03", "ü"),
    ]
    assert [row["spanlake read error"] for row in rows] == [None] * 3


def test_bad_csv_lines(tmp_path: Path) -> None:
    content = b'id\ttext\n1\n2\ta\tb\n3\t"a"b\n4\t\xff\n5\tfive\n6\t"open\n'
    rows = read_all(source_of(tmp_path, a_tsv=content))
    reasons = [row["spanlake read error"] for row in rows]
    assert reasons[:2] == ["line has 1 fields where the header has 2", "line has 3 fields where the header has 2"]
    assert "is not CSV" in reasons[2] and reasons[3] == "line is not valid UTF-8" and reasons[4] is None
    assert rows[4]["text"] == "five" and "unexpected end" in reasons[5] and len(rows) == 6


# --- planning -----------------------------------------------------------------------------------------------------


def test_what_planning_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several formats \(csv, jsonl\): choose"):
        source_of(tmp_path, a_csv="text\n", a_jsonl="{}")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    with pytest.raises(UserError, match=r"no column called text.*\(body\)"):
        read_source(str(tmp_path / "*.jsonl"), ("text",))
    (tmp_path / "a.csv").write_text("text,text\n1,2\n")
    with pytest.raises(UserError, match="more than one column called text"):
        read_source(str(tmp_path / "a.csv"), ("text",))
    (tmp_path / "a.csv").write_text("text,\n1,2\n")
    with pytest.raises(UserError, match="a column without a readable name"):
        read_source(str(tmp_path / "a.csv"), ("text",))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text\n" + b"some text\n" * 1000)[:40])
    with pytest.raises(UserError, match=r"b.csv.gz cannot be read"):
        read_source(str(tmp_path / "b.csv.gz"), ("text",))


def test_files_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n")
    source = read_source(str(tmp_path / "a.csv"), ("text",))
    assert source.rows == 0 and source.schema.names == ["id", "text"] and read_all(source) == []
    (tmp_path / "a.jsonl").write_text("\n")
    assert read_source(str(tmp_path / "a.jsonl"), ("text",)).schema.names == ["text"]


def test_a_changed_file_is_another_source(tmp_path: Path) -> None:
    source = source_of(tmp_path, a_csv="text\none\ntwo\n")
    again = source_of(tmp_path, a_csv="text\none\ntvo\n")
    assert source.files[0].digest != again.files[0].digest
    (tmp_path / "a.csv").write_text("text\none\n")
    with pytest.raises(SourceReadError, match="rows 0 to 2 of a.csv cannot be read"):
        read_all(source)


class Lengths:
    def stream(self, requests, on_pass=None):
        return ([Entity(0, len(text), text, "a", 0.5)] if text else [] for text, _ in requests)


def test_an_output_of_json_lines_is_audited_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "one", "id": 1}\nbroken\n{"text": 7}\n{"id": 4}\n')
    request = Request(
        source=read_source(str(tmp_path / "in"), ("text",)),
        output=locate(str(tmp_path / "out")),
        text_columns=("text",),
        settings=Settings.make(["a"]),
        model_name="m",
        model_fingerprint="f",
        precision="auto",
        unit_rows=2,
    )
    ledger = prepare(request)
    run_units(request, ledger, Lengths())
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert [row["text"] for row in rows] == ["one", None, "7", None]
    assert [row["entities"] and row["entities"][0]["text"] for row in rows] == ["one", None, None, None]
    assert [row["error"] and row["error"][:20] for row in rows] == [
        None,
        "line is not JSON (Ex",
        "text is not a string",
        "text is null",
    ]
    result = audit(read_ledger(request.output))
    assert result.complete and result.failed_rows == 3
    assert prepare(request).pending(read_ledger(request.output).committed()).num_rows == 0
