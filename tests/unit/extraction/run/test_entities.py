"""Several text columns in one run, and rows with labels of their own."""

import json
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.options import add_text_options, read_labels
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import ENTITY, Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare
from spanlake.extraction.output.report import report
from spanlake.extraction.output.row_labels import RowLabels
from spanlake.extraction.output.show import glance
from spanlake.extraction.source.open import read_source
from spanlake.inference.extractor import Extractor
from spanlake.inference.settings import Settings
from spanlake.options import add_labels_option, add_rules_option, add_selection_options, add_threshold_option
from spanlake.redaction import Redaction
from spanlake.storage import locate


class Capitals:
    """Finds capitalised words, and gives them the labels of their text in turn. POISON makes it fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Settings]] = []

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, settings in requests:
            if "POISON" in text:
                raise ValueError("cannot read this")
            self.asked.append((text, settings))
            words = enumerate(re.finditer(r"[A-Z]\w*", text))
            yield [Entity(*m.span(), m.group(), settings.names[n % len(settings.names)], 0.75) for n, m in words]


def extract(
    source: Path,
    text_columns: tuple[str, ...],
    settings: Settings,
    labels: RowLabels | None = None,
    layout: Layout | None = None,
    extractor: Capitals | Extractor | None = None,
) -> tuple[Ledger, list[dict[str, Any]]]:
    """Returns the ledger of a complete output, which an audit has proved, and its rows."""
    layout = layout or Layout()
    found, output = read_source(str(source), text_columns), source.parent / "out"
    layout.check(found.schema, text_columns)
    if labels:
        labels.check(found.schema)
    request = Request(
        found, locate(str(output)), text_columns, settings, "m", "f", "auto", 100, layout, row_labels=labels
    )
    ledger = prepare(request)
    run_units(request, ledger, extractor or Capitals())
    assert audit(ledger).complete
    prepare(request)  # the same request continues it
    return ledger, [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# --- several text columns -----------------------------------------------------------------------------------------


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    table = pa.table(
        {
            "title": ["About Ada", None, None, "Grace", "fine"],
            "body": pa.array([b"Bob met Eve", b"Ida", None, b"\xff", b"POISON"]),
        }
    )
    pq.write_table(table, tmp_path / "pages.parquet")
    return tmp_path / "pages.parquet"


def test_each_entity_says_from_which_column_it_is(pages: Path) -> None:
    ledger, rows = extract(pages, ("title", "body"), Settings.make(["name"]))
    assert rows[0]["entities"] == [
        {"column": "title", "start": 0, "end": 5, "text": "About", "label": "name", "score": 0.75},
        {"column": "title", "start": 6, "end": 9, "text": "Ada", "label": "name", "score": 0.75},
        {"column": "body", "start": 0, "end": 3, "text": "Bob", "label": "name", "score": 0.75},
        {"column": "body", "start": 8, "end": 11, "text": "Eve", "label": "name", "score": 0.75},
    ]
    assert [entity["text"] for entity in rows[1]["entities"]] == ["Ida"]  # a null is no text, and no error
    assert [row["entities"] for row in rows[2:]] == [None] * 3
    assert [row["error"] for row in rows] == [
        None,
        None,
        "all texts are null",
        "body: text is not valid UTF-8 (byte 0)",
        "body: ValueError: cannot read this",
    ]
    shown = glance(ledger, 9).passages
    assert {passage.text for passage in shown} == {"About Ada", "Bob met Eve", "Ida"}
    assert "Bob</mark>" not in report(ledger) and "Eve" in report(ledger)


def test_mentions_say_from_which_column_they_are(pages: Path) -> None:
    _, rows = extract(pages, ("title", "body"), Settings.make(["name"]), layout=Layout(kind="mentions"))
    assert [(row["column"], row["text"]) for row in rows] == [
        ("title", "About"),
        ("title", "Ada"),
        ("body", "Bob"),
        ("body", "Eve"),
        ("body", "Ida"),
        (None, None),
        (None, None),
        (None, None),
    ]


def test_each_text_column_has_its_redacted_column(pages: Path) -> None:
    layout = Layout(redaction=Redaction("label"), drop_text=True)
    _, rows = extract(pages, ("title", "body"), Settings.make(["name"]), layout=layout)
    assert list(rows[0]) == ["redacted_title", "redacted_body", "entities", "error"]
    assert [(row["redacted_title"], row["redacted_body"]) for row in rows] == [
        ("[NAME] [NAME]", "[NAME] met [NAME]"),
        (None, "[NAME]"),
        (None, None),
        (None, None),
        (None, None),
    ]


def test_one_text_column_has_the_schema_without_columns(pages: Path) -> None:
    ledger, _ = extract(pages, ("title",), Settings.make(["name"]))
    assert ledger.schema.field("entities").type.value_type == ENTITY
    assert ledger.manifest["text_column"] == "title" and "text_columns" not in ledger.manifest


def test_text_columns_of_lines(tmp_path: Path) -> None:
    lines = [{"title": "Ada", "body": "Bob"}, {"title": "Ada", "body": 7}, {"body": None}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, rows = extract(tmp_path / "in.jsonl", ("title", "body"), Settings.make(["name"]))
    errors = [None, "body: text is not a string but the JSON 7", "all texts are null"]
    assert [row["error"] for row in rows] == errors


# --- labels of rows -----------------------------------------------------------------------------------------------

ASKED = [["person"], None, [], ["place", "person"], ["person"], ["person", " "]]


def rows_with_labels(path: Path, labels: pa.Array) -> Path:
    texts = ["Ada Bob", "Eve", "Ida", "Rome Ada", "Max", "Tim"]
    pq.write_table(pa.table({"text": texts, "labels": labels}), path / "in.parquet")
    return path / "in.parquet"


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(ASKED, pa.list_(pa.string())),
        pa.array([None if names is None else json.dumps(names) for names in ASKED]),
        pa.array([None if names is None else ",".join(names) for names in ASKED]),
    ],
    ids=["lists", "JSON", "names"],
)
def test_each_row_has_its_labels(tmp_path: Path, labels: pa.Array) -> None:
    source = rows_with_labels(tmp_path, labels)
    ledger, rows = extract(source, ("text",), Settings.make(["animal"]), RowLabels("labels"))
    found = [row["entities"] and [(entity["text"], entity["label"]) for entity in row["entities"]] for row in rows]
    assert found[:5] == [
        [("Ada", "person"), ("Bob", "person")],
        [("Eve", "animal")],
        [],
        [("Rome", "place"), ("Ada", "person")],
        [("Max", "person")],
    ]
    assert [row["error"] for row in rows] == [None] * 5 + [rows[5]["error"]]
    assert rows[5]["entities"] is None
    assert rows[5]["error"].startswith("labels hold ") and rows[5]["error"].endswith(", which is not a name")
    assert audit(ledger).by_label == {"animal": 1, "person": 4, "place": 1}
    assert "place" in report(ledger)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[" person ", "person", "place\n"]] * 6),
        pa.array(['[" person ", "person", "place\\n"]'] * 6),
        pa.array([" person , person,place\n"] * 6),
    ],
    ids=["lists", "JSON", "names"],
)
def test_spaces_at_the_edges_of_labels_do_not_count(tmp_path: Path, labels: pa.Array) -> None:
    _, rows = extract(rows_with_labels(tmp_path, labels), ("text",), Settings.make(["x"]), RowLabels("labels"))
    assert {entity["label"] for row in rows for entity in row["entities"]} == {"person", "place"}


def test_labels_that_cannot_be_read_are_an_error_of_their_row(tmp_path: Path, tiny_model_dir: Path) -> None:
    labels = pa.array([["Person"], ["long " * 1000], ["place"], ["person"], ["a"], ["b"]])
    source = rows_with_labels(tmp_path, labels)
    with Extractor.load(str(tiny_model_dir), device="cpu", precision="float32") as extractor:
        _, rows = extract(source, ("text",), Settings.make(["x"]), RowLabels("labels"), extractor=extractor)
    assert [row["error"] is None for row in rows] == [True, False, True, True, True, True]
    assert "so shorten it" in rows[1]["error"]


def test_a_deeply_nested_list_of_labels_is_an_error_of_its_row(tmp_path: Path) -> None:
    source = rows_with_labels(tmp_path, pa.array(["person", "[" * 100_000, "a", "b", "c", "d"]))
    _, rows = extract(source, ("text",), Settings.make(["x"]), RowLabels("labels"))
    assert rows[0]["error"] is None and rows[1]["error"].startswith("labels cannot be read")


def test_null_labels_without_labels_of_the_run_are_an_error(tmp_path: Path) -> None:
    source = rows_with_labels(tmp_path, pa.array(ASKED, pa.list_(pa.string())))
    _, rows = extract(source, ("text",), Settings((), (), (), False, False), RowLabels("labels"))
    assert rows[1]["error"] == "labels are null, and --labels gives none" and rows[1]["entities"] is None
    assert rows[2]["error"] is None and rows[2]["entities"] == []


def test_the_texts_of_equal_labels_are_read_together(tmp_path: Path) -> None:
    """Otherwise, labels of many kinds would be read again for each row."""
    count = 400
    labels = pa.array([[f"kind {row % 3}"] for row in range(count)])
    pq.write_table(
        pa.table({"text": [f"Row {row}" for row in range(count)], "labels": labels}), tmp_path / "in.parquet"
    )
    extractor = Capitals()
    _, rows = extract(
        tmp_path / "in.parquet", ("text",), Settings.make(["x"]), RowLabels("labels"), extractor=extractor
    )
    assert [row["entities"][0]["label"] for row in rows] == [f"kind {row % 3}" for row in range(count)]
    kinds = [settings.names for _, settings in extractor.asked]
    changes = sum(one != other for one, other in zip(kinds, kinds[1:], strict=False))
    assert changes < 3 * -(-count // 100)  # three kinds in each unit


def test_texts_with_different_labels_share_passes(tiny_model_dir: Path) -> None:
    """A label set for each text costs no more passes than one for all."""
    texts = [f"Ada Lovelace met number {row}" for row in range(64)]

    def passes(labels: list[list[str]]) -> int:
        sizes: list[int] = []
        requests = ((text, Settings.make(own)) for text, own in zip(texts, labels, strict=True))
        assert len(list(extractor.stream(requests, sizes.append))) == len(texts)
        return len(sizes)

    with Extractor.load(str(tiny_model_dir), device="cpu", precision="float32") as extractor:
        alike = passes([["kind 11"]] * 64)
        assert passes([[f"kind {row + 10}"] for row in range(64)]) <= alike + 1


def test_a_column_that_holds_no_labels_is_refused(tmp_path: Path) -> None:
    source = rows_with_labels(tmp_path, pa.array([[1]] * 6))
    schema = read_source(str(source), ("text",)).schema
    with pytest.raises(UserError, match="--labels-column labels holds list<.*: int64>: name a column with lists"):
        RowLabels("labels").check(schema)
    with pytest.raises(UserError, match="--labels-column none is not a column of the source: give one of text, labels"):
        RowLabels("none").check(schema)


def options(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_labels_option(parser, required=False)
    add_text_options(parser)
    add_threshold_option(parser)
    add_selection_options(parser)
    add_rules_option(parser)
    return parser.parse_args(arguments)


def test_labels_of_rows_have_the_thresholds_and_descriptions_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("person: {description: a human being, threshold: 0.7}\n")
    settings, labels = read_labels(
        options("--labels-column", "labels", "--labels", f"@{tmp_path}/labels.yaml", "--threshold", "place=0.2")
    )
    assert labels == RowLabels("labels", None, {"place": 0.2})
    batch = pa.record_batch({"labels": pa.array([["place", "person", "film"]])})
    (found,) = labels.read(batch, settings)
    assert isinstance(found, Settings)
    assert found.prompts == ("place", "a human being", "film") and found.thresholds == (0.2, 0.7, 0.5)
    assert found.own == {"film"}  # the model may have a threshold of its own
    with pytest.raises(UserError, match="There are no labels: give --labels, or --labels-column"):
        read_labels(options())
    with pytest.raises(UserError, match="threshold 7.0 is not a number from 0 to 1"):
        read_labels(options("--labels-column", "labels", "--threshold", "a=7"))
