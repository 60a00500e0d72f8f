"""The output directory: what it refuses, how a run resumes, and what an audit finds. Without a model and Ray."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from units import run_units

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.extraction.output.audit import Audit, audit
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.output.show import draw, glance
from spanlake.extraction.run.unit import Job, UnitRunner
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.storage import locate


class Capitals:
    """Finds capitalised words and labels them by their length."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, settings in requests:
            found = list(re.finditer(r"[A-Z]\w*", text))
            labels = [settings.names[len(match.group()) % len(settings.names)] for match in found]
            yield [
                Entity(*match.span(), match.group(), label, 0.75) for match, label in zip(found, labels, strict=True)
            ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files with 25, 0 and 10 rows; one text is null."""
    directory = tmp_path / "source"
    directory.mkdir()
    texts = [f"Row {row} speaks of Ada and Bertha" for row in range(35)]
    texts[3] = None
    for name, part in (("a", texts[:25]), ("b", []), ("c", texts[25:])):
        table = pa.table({"id": pa.array(range(len(part)), pa.int64()), "text": pa.array(part, pa.string())})
        pq.write_table(table, directory / f"{name}.parquet")
    return directory


@pytest.fixture
def ask(source: Path, tmp_path: Path) -> Callable[..., Request]:
    """Returns a function that makes a request for the source, with any part replaced."""

    def make(**given: object) -> Request:
        values = {
            "source": read_source(str(source), ("text",)),
            "output": locate(str(tmp_path / "out")),
            "text_columns": ("text",),
            "settings": Settings.make(["person", "place"]),
            "model_name": "capitals",
            "model_fingerprint": "f" * 64,
            "precision": "auto",
            "unit_rows": 10,
        }
        return Request(**{**values, **given})

    return make


def work(request: Request, units: slice = slice(None)) -> Ledger:
    """Commits pending units, as a worker does."""
    ledger = prepare(request)
    run_units(request, ledger, Capitals(), units)
    return ledger


def audit_of(path: Path) -> Audit:
    return audit(read_ledger(locate(str(path))))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


# --- the manifest, and resuming -----------------------------------------------------------------------------------


def test_output_reads_as_one_table_in_source_order(ask, tmp_path: Path) -> None:
    work(ask()).clean()
    table = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert table["id"].to_pylist() == [*range(25), *range(10)]
    assert table.schema.names == ["id", "text", "entities", "error"]
    assert not list((tmp_path / "out" / "_spanlake" / "tmp").iterdir())
    manifest = json.loads((tmp_path / "out" / "_spanlake" / "manifest.json").read_text())
    assert manifest["source"] == {"uri": str(tmp_path / "source"), "files": 3, "rows": 35}
    assert manifest["settings"]["labels"] == {"person": "person", "place": "place"}
    assert manifest["versions"]["pyarrow"] == pa.__version__


def test_preparing_writes_nothing(ask, tmp_path: Path) -> None:
    prepare(ask())
    assert not (tmp_path / "out").exists()


def test_the_same_request_continues_with_pending_units(ask, tmp_path: Path) -> None:
    work(ask(), slice(0, 2))
    before = contents(tmp_path / "out")
    ledger = prepare(ask())
    assert ledger.plan.num_rows == 5 and ledger.pending(ledger.committed()).num_rows == 3
    work(ask())
    assert audit_of(tmp_path / "out").complete
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before if name.endswith(".parquet")} == {
        name: content for name, content in before.items() if name.endswith(".parquet")
    }


def test_a_different_cut_is_not_a_different_result(ask, tmp_path: Path) -> None:
    """The existing plan is kept, so that no row can be in two units."""
    work(ask(), slice(0, 2))
    work(ask(unit_rows=7))
    result = audit_of(tmp_path / "out")
    assert result.complete and result.output_rows == 35


def test_killed_before_the_manifest_was_written(ask, tmp_path: Path) -> None:
    (tmp_path / "out" / "_spanlake" / "tmp" / "x").mkdir(parents=True)
    (tmp_path / "out" / "_spanlake" / "plan-0.parquet").write_text("half")
    work(ask())
    assert audit_of(tmp_path / "out").complete


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"settings": Settings.make(["person", "place"], 0.6)}, "threshold 0.5 in the output, 0.6 requested"),
        ({"settings": Settings.make(["person"])}, "labels person, place in the output, person requested"),
        (
            {"settings": Settings.make(["place", "person"])},
            "labels person, place in the output, place, person requested",
        ),
        (
            {"settings": Settings.make({"person": "human being", "place": "place"})},
            "labels person, place in the output, person (human being), place requested",
        ),
        ({"settings": Settings.make(["person", "place"], nested=True)}, "nested false in the output, true requested"),
        ({"settings": Settings.make(["person", "place"], multi_label=True)}, "multi-label false in the output"),
        (
            {"model_fingerprint": "e" * 64},
            "model capitals (ffffffffffff) in the output, capitals (eeeeeeeeeeee) requested",
        ),
        ({"text_columns": ("title",)}, "text column text in the output, title requested"),
        ({"precision": "bfloat16"}, "precision auto in the output, bfloat16 requested"),
    ],
)
def test_a_different_result_is_refused(ask, tmp_path: Path, given: dict, expected: str) -> None:
    work(ask(), slice(0, 2))
    before = contents(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        prepare(ask(**given))
    assert expected in str(caught.value) and "another output directory" in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_the_same_model_by_another_name_is_the_same(ask) -> None:
    work(ask(), slice(0, 2))
    assert prepare(ask(model_name="/models/capitals")).manifest["model"]["name"] == "capitals"


def test_a_changed_source_is_refused(ask, source: Path) -> None:
    work(ask(), slice(0, 2))
    original = (source / "a.parquet").read_bytes()
    pq.write_table(pa.table({"id": [1], "text": ["Ada"]}), source / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet has changed since .* \(then 25 rows in .* now 1 rows in"):
        prepare(ask(source=read_source(str(source), ("text",))))
    (source / "a.parquet").unlink()
    with pytest.raises(UserError, match="a.parquet is no longer in"):
        prepare(ask(source=read_source(str(source), ("text",))))
    (source / "a.parquet").write_bytes(original)
    prepare(ask(source=read_source(str(source), ("text",))))


def test_the_same_files_elsewhere_are_the_same_source(ask, source: Path, tmp_path: Path) -> None:
    work(ask(), slice(0, 2))
    shutil.copytree(source, tmp_path / "copy")
    ledger = prepare(ask(source=read_source(str(tmp_path / "copy"), ("text",))))
    assert ledger.pending(ledger.committed()).num_rows == 3


def test_new_source_files_are_added(ask, source: Path, tmp_path: Path) -> None:
    work(ask()).clean()
    before = contents(tmp_path / "out")
    pq.write_table(pa.table({"id": [7, 8], "text": ["Cleo", "Dora"]}), source / "aa.parquet")
    assert not audit(prepare(ask(source=read_source(str(source), ("text",))))).complete
    work(ask(source=read_source(str(source), ("text",))))
    result = audit_of(tmp_path / "out")
    assert result.complete and result.source_rows == result.output_rows == 37
    units = {name for name in before if "_spanlake" not in name}
    assert all((tmp_path / "out" / name).read_bytes() == before[name] for name in units)
    assert json.loads((tmp_path / "out" / "_spanlake" / "manifest.json").read_text())["source"]["rows"] == 37


def test_other_directories_are_left_alone(ask, source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine is not empty \(it holds thesis.txt\)"):
        prepare(ask(output=locate(str(tmp_path / "mine"))))
    with pytest.raises(UserError, match="is a file"):
        prepare(ask(output=locate(str(tmp_path / "mine" / "thesis.txt"))))
    with pytest.raises(UserError, match="lies in the source"):
        prepare(ask(output=locate(str(source / "out"))))
    with pytest.raises(UserError, match="lies in the source"):
        prepare(ask(output=locate(str(source))))
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    assert len(contents(source)) == 3
    (tmp_path / "empty").mkdir()
    prepare(ask(output=locate(str(tmp_path / "empty"))))


def test_a_place_below_a_file_cannot_be_written_to(ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out cannot be"):
        prepare(ask(output=locate(str(tmp_path / "file" / "out")))).save()


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"format": 99}'])
def test_a_manifest_that_cannot_be_read(ask, tmp_path: Path, content: str) -> None:
    work(ask(), slice(0, 1))
    (tmp_path / "out" / "_spanlake" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="out"):
        read_ledger(locate(str(tmp_path / "out")))
    with pytest.raises(UserError, match="out"):
        prepare(ask())


def test_another_run_may_finish_first(ask, tmp_path: Path) -> None:
    """The first of two drivers with the same command deletes temporary files while the second still works."""
    request = ask()
    ledger = prepare(request)
    ledger.save()
    other = work(request)

    class Slow(Capitals):
        def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
            other.clean()
            return super().stream(requests)

    UnitRunner(Job.of(request, ledger), Slow()).run(next(units_of(ledger.plan)))
    assert audit_of(tmp_path / "out").complete


# --- the audit ----------------------------------------------------------------------------------------------------


def unit_paths(output: Path) -> list[Path]:
    return sorted(output.glob("*.parquet"))


def test_audit_of_a_complete_output(ask, tmp_path: Path) -> None:
    work(ask())
    result = audit_of(tmp_path / "out").as_json({"name": "capitals"})
    table = ds.dataset(tmp_path / "out", format="parquet").to_table()
    labels = [entity["label"] for found in table["entities"].to_pylist() for entity in found or []]
    assert result == {
        "complete": True,
        "source_rows": 35,
        "output_rows": 35,
        "failed_rows": 1,
        "missing_rows": 0,
        "duplicate_rows": 0,
        "foreign_rows": 0,
        "entities": 34 * 3,
        "by_label": {"person": labels.count("person"), "place": labels.count("place")},
        "problems": 0,
        "model": {"name": "capitals"},
    }


def test_audit_of_a_source_without_rows(ask, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none" / "a.parquet")
    work(ask(source=read_source(str(tmp_path / "none"), ("text",))))
    result = audit_of(tmp_path / "out")
    assert result.complete and result.source_rows == result.output_rows == 0
    assert ds.dataset(tmp_path / "out", format="parquet").schema.names == ["text", "entities", "error"]


def damage_delete(output: Path) -> None:
    unit_paths(output)[0].unlink()


def damage_rename(output: Path) -> None:
    unit_paths(output)[0].rename(output / "renamed.parquet")


def damage_copy(output: Path) -> None:
    shutil.copy(unit_paths(output)[0], output / "copy.parquet")


def damage_copy_over(output: Path) -> None:
    first, second = unit_paths(output)[:2]
    shutil.copy(first, second)


def damage_add_parquet(output: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 4}), output / "mine.parquet")


def damage_add_text(output: Path) -> None:
    (output / "notes.txt").write_text("hello")


def damage_add_directory(output: Path) -> None:
    (output / "more").mkdir()


def damage_truncate(output: Path) -> None:
    path = unit_paths(output)[0]
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(output: Path) -> None:
    unit_paths(output)[0].write_bytes(b"")


def damage_page(output: Path) -> None:
    path = unit_paths(output)[0]
    content = bytearray(path.read_bytes())
    content[4:300:7] = bytes(byte ^ 0xFF for byte in content[4:300:7])
    path.write_bytes(content)


def damage_entities(output: Path) -> None:
    """Removes one entity, and keeps rows and footer."""
    path = unit_paths(output)[0]
    table = pq.read_table(path)
    metadata = pq.read_schema(path).metadata
    entities = table["entities"].to_pylist()
    entities[0] = entities[0][1:]
    column = pa.array(entities, table.schema.field("entities").type)
    altered = table.set_column(2, table.schema.field("entities"), column)
    pq.write_table(altered.replace_schema_metadata(metadata), path)


def damage_rows(output: Path) -> None:
    path = unit_paths(output)[0]
    metadata = pq.read_schema(path).metadata
    pq.write_table(pq.read_table(path).slice(1).replace_schema_metadata(metadata), path)


def damage_column(output: Path) -> None:
    path = unit_paths(output)[0]
    metadata = pq.read_schema(path).metadata
    pq.write_table(pq.read_table(path).drop_columns("id").replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("damage", "missing", "duplicate", "foreign", "problem"),
    [
        (damage_delete, 8, 0, 0, "missing: rows 0 to 8 of a.parquet"),
        (damage_rename, 8, 0, 8, "foreign: renamed.parquet"),
        (damage_copy, 0, 8, 0, "duplicate: copy.parquet"),
        (damage_copy_over, 8, 8, 0, "duplicate: a."),
        (damage_add_parquet, 0, 0, 4, "foreign: mine.parquet"),
        (damage_add_text, 0, 0, 0, "unreadable: notes.txt"),
        (damage_add_directory, 0, 0, 0, "unreadable: more (it is not a file)"),
        (damage_truncate, 8, 0, 0, "unreadable: a."),
        (damage_empty, 8, 0, 0, "unreadable: a."),
        (damage_page, 8, 0, 0, "unreadable: a."),
        (damage_entities, 8, 0, 8, "foreign: a."),
        (damage_rows, 8, 0, 7, "foreign: a."),
        (damage_column, 8, 0, 8, "foreign: a."),
    ],
)
def test_audit_finds(
    ask, tmp_path: Path, damage: Callable[[Path], None], missing: int, duplicate: int, foreign: int, problem: str
) -> None:
    work(ask())
    damage(tmp_path / "out")
    result = audit_of(tmp_path / "out")
    assert not result.complete and any(problem in found for found in result.problems), result.problems
    assert (result.missing_rows, result.duplicate_rows, result.foreign_rows) == (missing, duplicate, foreign)
    assert result.output_rows == 35 - missing + duplicate + foreign
    assert all("\n" not in found for found in result.problems)


def test_no_byte_can_change_unnoticed(ask, tmp_path: Path) -> None:
    """The audit finds every changed byte that changes a value. Others have no effect, such as page statistics."""
    work(ask())
    path = unit_paths(tmp_path / "out")[0]
    original, table = path.read_bytes(), pq.read_table(path)
    for position in range(4, len(original) - 8, 11):
        content = bytearray(original)
        content[position] ^= 0xFF
        path.write_bytes(content)
        assert not audit_of(tmp_path / "out").complete or pq.read_table(path).equals(table), position


def test_audit_finds_units_of_another_run(ask, tmp_path: Path) -> None:
    work(ask())
    other = work(ask(output=locate(str(tmp_path / "other")), settings=Settings.make(["person", "place"], 0.9)))
    path = unit_paths(tmp_path / "other")[0]
    shutil.copy(path, tmp_path / "out" / path.name)
    result = audit_of(tmp_path / "out")
    assert result.missing_rows == result.foreign_rows == 8 and audit(other).complete


def test_what_audit_finds_missing_is_extracted_again(ask, tmp_path: Path) -> None:
    work(ask())
    unit_paths(tmp_path / "out")[1].unlink()
    assert audit_of(tmp_path / "out").missing_rows == 8
    work(ask())
    assert audit_of(tmp_path / "out").complete


def test_audit_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an output of `spanlake extract`"):
        audit_of(tmp_path)
    with pytest.raises(UserError, match="not an output of `spanlake extract`"):
        audit_of(tmp_path / "nowhere")


# --- show ---------------------------------------------------------------------------------------------------------


def shown(output: Path, examples: int = 2) -> str:
    ledger = read_ledger(locate(str(output)))
    stream = io.StringIO()
    draw(ledger, glance(ledger, examples), Console(file=stream, width=100))
    return stream.getvalue()


def test_show_counts_and_marks(ask, tmp_path: Path) -> None:
    work(ask())
    text = shown(tmp_path / "out")
    assert "\x1b" not in text
    rows = {line.split()[1]: line for line in text.splitlines() if "(34)" in line}
    assert "Bertha (34)" in rows["person"] and "Ada (34)" in rows["place"]
    assert "[Row] place 0.75 0 speaks of [Ada] place 0.75 and [Bertha] person 0.75" in text
    assert "all 35 rows" in text and f"spanlake audit {tmp_path}" in text.replace("\n", "")


def test_show_of_an_output_without_entities(ask, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    pq.write_table(pa.table({"text": ["nothing here", None]}), tmp_path / "none" / "a.parquet")
    work(ask(source=read_source(str(tmp_path / "none"), ("text",))))
    text = shown(tmp_path / "out")
    assert "person" in text and "examples" not in text


def test_show_of_hostile_and_long_texts(ask, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    long = "x" * 5000 + " Ada [bold]met[/bold] \x1b[31mBob\n\n" + "y" * 5000
    pq.write_table(pa.table({"text": [long]}), tmp_path / "none" / "a.parquet")
    work(ask(source=read_source(str(tmp_path / "none"), ("text",))))
    text = shown(tmp_path / "out")
    assert "[bold]met[/bold]" in text and "\x1b" not in text and len(text) < 4000


def test_show_crops_long_texts_between_words(ask, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    words = "so many little words " * 30
    pq.write_table(
        pa.table({"text": [f"{words}until Ada and Bertha came {words}Zoe"]}), tmp_path / "none" / "a.parquet"
    )
    work(ask(source=read_source(str(tmp_path / "none"), ("text",))))
    text = " ".join(shown(tmp_path / "out").replace("│", " ").split())
    passage = text[text.index("…") : text.rindex("…") + 1]
    marks = {"…", "until", "[Ada]", "place", "0.75", "and", "[Bertha]", "person", "came"}
    assert set(passage.split()) <= {*words.split(), *marks}
    assert "until [Ada] place 0.75 and [Bertha] person 0.75 came so many" in passage and len(passage) < 400


def test_manifest_names_every_difference(ask) -> None:
    work(ask(), slice(0, 1))
    with pytest.raises(UserError, match="threshold 0.5 in the output, 0.7 requested; nested false in the output, true"):
        prepare(replace(ask(), settings=Settings.make(["person", "place"], 0.7, nested=True)))
