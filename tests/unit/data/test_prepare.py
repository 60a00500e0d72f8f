"""`spanlake data prepare`: the training format, its statistics, and what it refuses."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanlake.cli import main
from spanlake.data.prepare import prepare
from spanlake.data.prepared import SCHEMA, examples_of, read_statistics
from spanlake.data.stream import open_prepared
from spanlake.errors import UserError
from spanlake.storage import locate

WORDS = ["Ada", "met", "Marie", "Curie"]


def lines(path: Path, *records: object) -> str:
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def record(*spans: list, words: list[str] = WORDS, **more: object) -> dict:
    return {"tokenized_text": words, "ner": list(spans), **more}


def test_the_training_format_and_its_statistics(tmp_path: Path) -> None:
    names = record([0, 0, "person"], [2, 3, "person"], [2, 3, "person"], negatives=["person", "drug", "drug"])
    wide = record([0, 3, "group"], [0, 0, " person "], words=["Ada", "met", "Marie\ud800", "Curie"])
    empty = record(words=["x"] * 9)
    turns = ["Text: Paris, Parisians and New York City", "Yes", "What describes city in the text?"]
    turns.append('["paris", "Parisian", "Oslo", "New York City", "New York"]')
    talk = {"conversations": [{"from": "human" if i % 2 == 0 else "gpt", "value": v} for i, v in enumerate(turns)]}
    sources = [lines(tmp_path / "a.jsonl.gz", names, wide, empty), lines(tmp_path / "b.json", [talk])]
    output = tmp_path / "out"
    statistics = prepare(sources, locate(str(output)), max_width=3, renamed={"group": "people"})
    assert sorted(file.name for file in output.iterdir()) == ["a-00000.parquet", "b-00000.parquet", "statistics.json"]
    assert statistics == json.loads((output / "statistics.json").read_text()) == read_statistics(locate(str(output)))

    table = pq.read_table(output / "a-00000.parquet")
    assert table.schema.equals(SCHEMA) and set(table["source"].to_pylist()) == {"a"}
    first, second, third = examples_of(table)
    assert [(m.start, m.end, m.label) for m in first.mentions] == [(0, 3, "person"), (8, 19, "person")]
    assert first.negatives == ("drug",)
    assert [m.label for m in second.mentions] == ["person", "people"] and second.text == "Ada met Marie\ufffd Curie"
    assert third.mentions == ()

    a, b = statistics["sources"]
    assert (a["examples"], a["mentions"], a["examples_without_mentions"], a["longest_text"]) == (3, 4, 1, 9)
    assert a["types"] == {"person": 3, "people": 1} and list(a["types"]) == ["person", "people"]
    assert a["mention_widths"] == {"1": 2, "2": 1, "5": 1}  # the replaced character is a word
    assert a["unusable"] == {"wider_than_max_width": 1} and a["dropped"] == {} and a["longest_mention"] == 5
    assert b["dropped"] == {"not_found": 1, "inside_a_word": 1, "overlapping": 1} and b["mentions"] == 2
    assert (statistics["examples"], statistics["mentions"], statistics["types"]) == (4, 6, 3)


def test_types_in_levels_are_kept_and_counted(tmp_path: Path) -> None:
    """In the wording of the training format, and as lists, which is how a text of open types may come."""
    levels = {"start": 0, "end": 3, "types": ["mathematician ", "scientist", "person", "scientist"]}
    one = {"text": "Ada met Marie", "mentions": [levels, {"start": 8, "end": 13, "label": "person"}]}
    two = {"text": "Ada", "mentions": [[0, 3, ["poet", "person"]]], "absent": ["person", "drug"], "source": "x"}
    words = record([0, 0, ["chemist", "person"]], negatives=["ship"])
    source = lines(tmp_path / "a.jsonl", one, two, words)
    statistics = prepare([source], locate(str(tmp_path / "out")), renamed={"poet": "writer", "scientist": "person"})
    first, second, third = open_prepared(locate(str(tmp_path / "out")))[0].examples()
    assert [m.types for m in first.mentions] == [("mathematician", "person"), ("person",)]
    assert [m.types for m in second.mentions] == [("writer", "person")] and second.negatives == ("drug",)
    assert [m.types for m in third.mentions] == [("chemist", "person")] and third.negatives == ("ship",)
    assert (statistics["mentions"], statistics["mentions_in_levels"], statistics["types"]) == (4, 3, 4)
    assert statistics["sources"][0]["types"] == {"person": 4, "mathematician": 1, "writer": 1, "chemist": 1}
    again = prepare([str(tmp_path / "out")], locate(str(tmp_path / "again")))
    assert again["sources"][0]["types"] == statistics["sources"][0]["types"]


def in_version_1(directory: Path) -> None:
    """Rewrites a prepared directory as the first version of the format had it."""
    fields = [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]
    for file in directory.glob("*.parquet"):
        table = pq.read_table(file)
        mentions = [
            [{"start": m["start"], "end": m["end"], "label": m["types"][0]} for m in row]
            for row in table["mentions"].to_pylist()
        ]
        column = pa.array(mentions, pa.list_(pa.struct(fields)))
        pq.write_table(table.set_column(table.schema.get_field_index("mentions"), "mentions", column), file)
    statistics = json.loads((directory / "statistics.json").read_text())
    statistics["format_version"] = statistics["request"]["format_version"] = 1
    (directory / "statistics.json").write_text(json.dumps(statistics))


def test_the_first_version_of_the_format_is_read_and_a_later_one_refused(tmp_path: Path) -> None:
    source, output = lines(tmp_path / "a.jsonl", record([0, 0, "person"], negatives=["drug"])), tmp_path / "out"
    prepare([source], locate(str(output)))
    new = open_prepared(locate(str(output)))[0].examples()
    in_version_1(output)
    assert open_prepared(locate(str(output)))[0].examples() == new
    assert prepare([source], locate(str(output)))["format_version"] == 1  # it is left as it is
    assert prepare([str(output)], locate(str(tmp_path / "again")))["sources"][0]["types"] == {"person": 1}
    (output / "statistics.json").write_text('{"format_version": 3}')
    with pytest.raises(UserError, match="has the training format 3; this version reads 1 and 2, so prepare it again"):
        read_statistics(locate(str(output)))


def test_bad_records_are_counted_and_stop_above_the_rate(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", record(), "{", record(), *[record()] * 47)
    with pytest.raises(
        UserError, match=r"1 of 50 records of .*a.jsonl.*the rate 0.01.*a.jsonl, line 2: it is not JSON"
    ):
        prepare([source], locate(str(tmp_path / "out")))
    statistics = prepare([source], locate(str(tmp_path / "out")), max_bad_rate=0.02)
    assert statistics["bad_records"] == 1 and statistics["examples"] == 49
    assert statistics["sources"][0]["first_bad"][0].startswith(f"{source}, line 2: it is not JSON")


def test_a_source_of_bad_records_stops_early(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", *["{"] * 3000)
    with pytest.raises(UserError, match="1000 of 1000 records"):
        prepare([source], locate(str(tmp_path / "out")), max_bad_rate=0.5)


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set" / "a.jsonl", record())
    lines(tmp_path / "set" / "notes.md", "x")
    source = prepare([str(tmp_path / "set")], locate(str(tmp_path / "out")))["sources"][0]
    assert source["files_not_read"] == [str(tmp_path / "set" / "notes.md")]


def test_the_same_call_again_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    source, output = lines(tmp_path / "a.jsonl", record()), tmp_path / "out"
    first = prepare([source], locate(str(output)))
    before = {file: file.stat().st_mtime_ns for file in output.iterdir()}
    assert prepare([source], locate(str(output))) == first
    assert before == {file: file.stat().st_mtime_ns for file in output.iterdir()}
    with pytest.raises(UserError, match="another preparation: its max_width is 12 and not 5"):
        prepare([source], locate(str(output)), max_width=5)
    lines(tmp_path / "a.jsonl", record(), record())
    with pytest.raises(UserError, match="another preparation: its sources is"):
        prepare([source], locate(str(output)))


def test_an_output_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    source, output = lines(tmp_path / "a.jsonl", record()), tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="has other content"):
        prepare([source], locate(str(output)))
    assert [file.name for file in output.iterdir()] == ["thesis.txt"]


def test_what_was_interrupted_is_no_data_set_and_is_begun_again(tmp_path: Path) -> None:
    good = lines(tmp_path / "a.jsonl", *[record()] * 5)
    broken = tmp_path / "b.json"
    broken.write_text(json.dumps([record()] * 3)[:-9])
    output = tmp_path / "out"
    with pytest.raises(UserError, match="breaks off"):
        prepare([good, str(broken)], locate(str(output)))
    assert (output / "a-00000.parquet").exists() and read_statistics(locate(str(output))) is None
    with pytest.raises(UserError, match="not a prepared data set"):
        open_prepared(locate(str(output)))
    prepare([good], locate(str(output)))
    assert sorted(file.name for file in output.iterdir()) == ["a-00000.parquet", "statistics.json"]


def test_large_sources_are_written_in_row_groups_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanlake.data.prepare._FILE_ROWS", 512)
    source = lines(tmp_path / "a.jsonl", *[record([0, 0, f"t{i}"]) for i in range(1025)])
    prepare([source], locate(str(tmp_path / "out")))
    (data,) = open_prepared(locate(str(tmp_path / "out")))
    assert [rows for *_, rows in data.groups] == [256, 256, 256, 256, 1]
    assert len({file for file, *_ in data.groups}) == 3
    assert [e.mentions[0].label for e in data.examples()] == [f"t{i}" for i in range(1025)]
    assert [e.mentions[0].label for e in data.examples(frozenset([3, 600, 1024]))] == ["t3", "t600", "t1024"]


def test_an_output_may_be_a_uri(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", *[record([0, 0, "x"])] * 3)
    for uri in (f"file://{tmp_path}/out", f"memory://{tmp_path.name}/out"):
        prepare([source], locate(uri))
        assert prepare([source], locate(uri))["examples"] == 3
        (data,) = open_prepared(locate(uri))
        assert len(data.examples()) == 3


def test_a_prepared_set_is_a_source_too(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", record([0, 0, "x"], negatives=["y"]))
    prepare([source], locate(str(tmp_path / "one")))
    statistics = prepare([str(tmp_path / "one"), source], locate(str(tmp_path / "two")))
    assert statistics["examples"] == 2 and statistics["mentions"] == 2
    for data in open_prepared(locate(str(tmp_path / "two"))):
        assert data.examples()[0].negatives == ("y",)


def test_sources_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    sources = [
        lines(tmp_path / name, record()) for name in ("x/train.jsonl", "y/train.jsonl", "x/a.jsonl", "y/a.jsonl")
    ]
    statistics = prepare(sources, locate(str(tmp_path / "out")))
    assert [source["name"] for source in statistics["sources"]] == ["x-train", "y-train", "a", "a-2"]
    assert len(open_prepared(locate(str(tmp_path / "out")))) == 4


def test_a_file_that_is_missing_from_a_prepared_set_is_noticed(tmp_path: Path) -> None:
    prepare([lines(tmp_path / "a.jsonl", record())], locate(str(tmp_path / "out")))
    (tmp_path / "out" / "a-00000.parquet").unlink()
    with pytest.raises(UserError, match="lacks rows of a: it has 0 of 1"):
        open_prepared(locate(str(tmp_path / "out")))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = lines(tmp_path / "a.jsonl", record([0, 0, "PER"]), "{"), str(tmp_path / "out")
    call = ["data", "prepare", source, "--output", output, "--rename", "PER=person"]
    assert main([*call, "--max-bad-rate", "0.5"]) == 0
    printed, said = capsys.readouterr()
    assert "1 mentions" in printed and "person 1" in printed and "not read: 1 records" in printed
    assert "line 2: it is not JSON" in said
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["types"] == {"person": 1}
    assert main(["data", "prepare", str(tmp_path / "none"), "--output", str(tmp_path / "o2")]) == 2
    said = capsys.readouterr().err
    assert "no file or directory" in said and "Traceback" not in said
    assert main(["data", "prepare", source, "--output", output, "--rename", "PER"]) == 2
    assert main(["data", "prepare", source, "--output", output, "--max-width", "0"]) == 2
