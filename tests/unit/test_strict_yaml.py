"""YAML files: a key that is written twice is an error, in whatever file."""

from pathlib import Path

import pytest
import yaml

from spanlake.errors import UserError
from spanlake.labels import parse_labels
from spanlake.rules import Rules
from spanlake.strict_yaml import load_yaml
from spanlake.training.recipe import read_recipe


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a",
        "a: 1\nb: {a: 2}",
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}",
        "[{a: 1}, {a: 2}]",
        "1: a\n'1': b",
        "null: 1",
    ],
)
def test_reads_what_pyyaml_reads(content: str) -> None:
    assert load_yaml(content) == yaml.safe_load(content)


@pytest.mark.parametrize("content", ["a: 1\na: 2", "b: [{a: 1, a: 1}]", "1: a\n1: b", "{x: &x {a: 1, a: 2}, y: *x}"])
def test_a_key_that_is_there_twice_is_refused(content: str) -> None:
    with pytest.raises(yaml.YAMLError, match="is there twice"):
        load_yaml(content)


def test_a_message_names_the_line_and_the_key(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("person: a human\ndrug: a medicine\nperson: someone\n")
    with pytest.raises(UserError, match=r"line 3: the key 'person' is there twice"):
        parse_labels(f"@{file}")
    with pytest.raises(UserError, match=r"line 3: the key 'person' is there twice"):
        Rules.read(file)
    with pytest.raises(UserError, match=r"the key 'person' is there twice"):
        read_recipe(file, [])
