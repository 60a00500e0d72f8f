"""Extraction with rules beside the model: what is written, counted, audited and resumed."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from units import run_units

from spanlake import Extractor, Rules, UserError, cli
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.report import report
from spanlake.extraction.output.row_labels import RowLabels
from spanlake.extraction.output.show import glance
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.redaction import Redaction
from spanlake.storage import locate

LONG = "Ada met Charles in London. " * 40 + "Write to ada@example.org."  # more than one window
TEXTS = ["Ada wrote to bob@example.org about OPS-12", None, "", LONG, "nobody"]
CONTENT = {"rules": [{"label": "email", "kind": "email"}, {"label": "ticket", "pattern": "OPS-[0-9]+"}]}


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def make_request(directory: Path, layout: Layout, rules: Rules | None, table: pa.Table | None = None) -> Request:
    (directory / "source").mkdir(exist_ok=True)
    pq.write_table(table or pa.table({"text": TEXTS}), directory / "source" / "a.parquet")
    return Request(
        source=read_source(str(directory / "source"), ("text",)),
        output=locate(str(directory / "out")),
        text_columns=("text",),
        settings=Settings.make(["person", "place"], 0.4, rules=rules),
        model_name="m",
        model_fingerprint="f" * 64,
        precision="auto",
        unit_rows=3,
        layout=layout,
    )


def extracted(request: Request, extractor: Extractor) -> Ledger:
    ledger = prepare(request)
    run_units(request, ledger, extractor)
    ledger.clean()
    return read_ledger(request.output)


def rows(directory: Path) -> list[dict]:
    return pa.concat_tables(pq.read_table(path) for path in sorted((directory / "out").glob("*.parquet"))).to_pylist()


def test_entities_of_rules_are_marked_and_counted(tmp_path: Path, extractor: Extractor) -> None:
    ledger = extracted(make_request(tmp_path, Layout(sourced=True), Rules(CONTENT)), extractor)
    found = [row["entities"] for row in rows(tmp_path)]
    assert found[1] is None and found[2] == []
    by_rule = [entity for row in found if row for entity in row if entity["source"] == "rule"]
    assert [(entity["text"], entity["label"], entity["score"]) for entity in by_rule] == [
        ("bob@example.org", "email", 1.0),
        ("OPS-12", "ticket", 1.0),
        ("ada@example.org", "email", 1.0),
    ]
    assert {entity["source"] for row in found if row for entity in row} == {"model", "rule"}
    [expected] = extractor.extract([LONG], ["person", "place"], 0.4, rules=Rules(CONTENT))
    assert [(entity["start"], entity["label"]) for entity in found[3]] == [(e.start, e.label) for e in expected]
    result = audit(ledger)
    assert result.complete and list(result.by_label) == ["person", "place", "email", "ticket"]
    assert (result.by_label["email"], result.by_label["ticket"]) == (2, 1)
    assert glance(ledger, 3).forms["ticket"] == {"OPS-12": 1}
    assert "ticket" in report(ledger)


def test_mentions_have_a_source_and_redaction_covers_both(tmp_path: Path, extractor: Extractor) -> None:
    layout = Layout("mentions", redaction=Redaction("label"), drop_text=True, sourced=True)
    ledger = extracted(make_request(tmp_path, layout, Rules(CONTENT)), extractor)
    found = rows(tmp_path)
    assert list(found[0])[-3:] == ["score", "source", "error"]
    assert [row["text"] for row in found if row["source"] == "rule"] == ["[EMAIL]", "[TICKET]", "[EMAIL]"]
    assert audit(ledger).complete


def test_rules_apply_to_a_row_without_labels(tmp_path: Path, extractor: Extractor) -> None:
    table = pa.table({"text": [TEXTS[0], TEXTS[0]], "asked": [[], ["person"]]})
    request = replace(
        make_request(tmp_path, Layout(sourced=True), Rules(CONTENT), table), row_labels=RowLabels("asked", 0)
    )
    ledger = extracted(request, extractor)
    first, second = (row["entities"] for row in rows(tmp_path))
    assert [(entity["label"], entity["source"]) for entity in first] == [("email", "rule"), ("ticket", "rule")]
    assert {entity["label"] for entity in second} == {"person", "email", "ticket"}
    assert audit(ledger).complete


def test_other_rules_are_another_result(tmp_path: Path, extractor: Extractor) -> None:
    extracted(make_request(tmp_path, Layout(sourced=True), Rules(CONTENT)), extractor)
    other = Rules({"rules": CONTENT["rules"][:1]})
    with pytest.raises(UserError, match=r"rules with digest \w{16} in the output, \w{16} requested"):
        prepare(make_request(tmp_path, Layout(sourced=True), other))
    with pytest.raises(UserError, match=r"rules with digest \w{16} in the output, none requested"):
        prepare(make_request(tmp_path, Layout(), None))
    same = make_request(tmp_path, Layout(sourced=True), Rules(CONTENT))
    assert prepare(same).request_digest == read_ledger(same.output).request_digest
    assert "bob" not in (tmp_path / "out" / "_spanlake" / "manifest.json").read_text()


def test_a_column_called_source_is_refused_where_mentions_have_one(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string()), ("source", pa.string())])
    with pytest.raises(UserError, match="column source has a name that the output adds"):
        Layout("mentions", ("source",), sourced=True).check(schema, ("text",))
    Layout("mentions", ("source",)).check(schema, ("text",))


def test_the_command_reads_rules(tmp_path: Path, tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_request(tmp_path, Layout(), None)
    (tmp_path / "pii.yaml").write_text(json.dumps(CONTENT))
    call = ["extract", str(tmp_path / "source"), str(tmp_path / "out"), "--labels", "person"]
    call += ["--model", str(tiny_model_dir), "--device", "cpu", "--rules", str(tmp_path / "pii.yaml")]
    assert cli.main([*call, "--dry-run", "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)["by_label"]
    assert list(counts) == ["person", "email", "ticket"]
    assert (counts["email"], counts["ticket"]) == (2, 1)
