"""Tests the reading of labels from a command line."""

import os
from pathlib import Path

import pytest

from spanlake.errors import UserError
from spanlake.labels import parse_labels, parse_thresholds


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("person", ["person"]),
        ("person, sports team ,film", ["person", "sports team", "film"]),
        ('person,"city, state"', ["person", "city, state"]),
        ('person, "city, state","a ""quoted"" name"', ["person", "city, state", 'a "quoted" name']),
        ('5" disk', ['5" disk']),
        ('"@handle",person', ["@handle", "person"]),
        ("person\nfilm\n", ["person", "film"]),
        ("a,,b", ["a", "", "b"]),  # `Settings.make` refuses the blank
        ("", []),
        (os.fsdecode(b"caf\xff"), ["caf\ufffd"]),
    ],
)
def test_names_with_commas_between(argument: str, expected: list[str]):
    assert parse_labels(argument) == (expected, {})


@pytest.mark.parametrize("argument", ['person,"city', '"city" state'])
def test_a_quote_that_does_not_close_its_label_is_refused(argument: str):
    with pytest.raises(UserError, match="put double quotes around the whole of a label"):
        parse_labels(argument)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("labels", "person\n\n  city, state \r\nC#: a language", ["person", "city, state", "C#: a language"]),
        ("labels.txt", "\ufeffperson", ["person"]),
        ("labels.json", '["person", "city, state"]', ["person", "city, state"]),
        ("labels.yaml", "- person\n- film", ["person", "film"]),
        ("labels.YML", "who: a human being\nwhere: a place", {"who": "a human being", "where": "a place"}),
        ("labels.txt", "", []),
    ],
)
def test_labels_from_a_file(tmp_path: Path, name: str, content: str, expected: object):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert parse_labels(f"@{tmp_path / name}") == (expected, {})


def test_labels_with_descriptions_and_thresholds_from_one_file(tmp_path: Path):
    (tmp_path / "labels.yaml").write_text(
        "who: {description: a human being, threshold: 0.7}\n"
        "where: a place\n"
        "when: {threshold: 1}\n"
        "film: {description: a film or series}\n"
        "any: {}\n"
    )
    labels, thresholds = parse_labels(f"@{tmp_path}/labels.yaml")
    described = {"who": "a human being", "where": "a place", "film": "a film or series"}
    assert labels == {**described, "when": "when", "any": "any"} and list(labels) == [
        "who",
        "where",
        "when",
        "film",
        "any",
    ]
    assert thresholds == {"who": 0.7, "when": 1}


@pytest.mark.parametrize(
    "content",
    ["a: {treshold: 0.7}", "a: {threshold: high}", "a: {description: 5}", "a: {}\nb: [c]", "5: {threshold: 0.7}"],
)
def test_a_label_with_something_else_is_refused(tmp_path: Path, content: str):
    (tmp_path / "labels.yaml").write_text(content)
    with pytest.raises(UserError, match="for the label .* give a description as a string, or a mapping with"):
        parse_labels(f"@{tmp_path}/labels.yaml")


def test_thresholds_of_a_command_line():
    assert parse_thresholds([]) == (None, {})
    assert parse_thresholds(["0.4", "person=0.7", "a = b=0.2", "0.5", "person=0.8"]) == (
        0.5,
        {"person": 0.8, "a = b": 0.2},
    )
    for argument in ("high", "person", "person=high", "person="):
        with pytest.raises(UserError, match=f"The threshold '{argument}' is not a number, nor a label with a number"):
            parse_thresholds([argument])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("labels.json", b'["person"', "cannot be read"),
        ("labels.json", b'"person"', "neither a list"),
        ("labels.yaml", b"- person\n- 5", "neither a list"),
        ("labels.yaml", b"who: [a, b]", "neither a list"),
        ("labels.yaml", b"", "neither a list"),
        ("labels.txt", b'["person"]', "ends in .json"),
        ("labels.txt", b"\xff", "utf-8"),
        ("none/labels.txt", None, "No such file"),
    ],
)
def test_an_unreadable_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: "bytes | None", says: str):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        parse_labels(f"@{path}")
    message = str(refused.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message
