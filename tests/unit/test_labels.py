"""Tests the reading of labels from a command line."""

import os
from pathlib import Path

import pytest

from spanlake.errors import UserError
from spanlake.labels import parse_labels


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
    assert parse_labels(argument) == expected


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
    assert parse_labels(f"@{tmp_path / name}") == expected


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
