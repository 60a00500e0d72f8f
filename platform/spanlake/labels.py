"""The forms of labels and thresholds in calls, and the reading of labels from a command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from spanlake.errors import UserError, one_line, shown
from spanlake.text import replace_surrogates

Labels = Sequence[str] | Mapping[str, str]  # names, or names -> descriptions that the model reads in their place
Threshold = float | Sequence[float] | Mapping[str, float]  # for all labels, for each in order, or for each by name

_YAML_SUFFIXES = (".json", ".yaml", ".yml")  # JSON is YAML too


def parse_labels(argument: str) -> Labels:
    """Returns the labels of a command-line argument: names with commas between, or `@FILE`.

    The commas are those of CSV: double quotes hold a name together, as in `person,"city, state"`. A file named .json,
    .yaml or .yml holds a list of names or a mapping of names to descriptions; any other file holds one name a line.

    Raises `UserError` for a quote that is never closed, and for a file that cannot be read.
    """
    if argument.startswith("@"):
        return _read_file(Path(argument[1:]))
    return split_names(argument, "label")


def split_names(argument: str, kind: str) -> list[str]:
    """Returns names, written with commas between them as in CSV. Messages call one a `kind`.

    Raises `UserError` for a quote that is never closed.
    """
    try:
        rows = list(csv.reader(io.StringIO(argument, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(
            f"The {kind}s {shown(argument)} cannot be told apart ({one_line(error)}): "
            f"put double quotes around the whole of a {kind} that holds a comma or a quote."
        ) from error
    return [replace_surrogates(name).strip() for row in rows for name in row]


def _read_file(path: Path) -> Labels:
    try:
        content = path.read_text(encoding="utf-8-sig")
        labels = yaml.safe_load(content) if path.suffix.lower() in _YAML_SUFFIXES else _lines(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The labels file {path} cannot be read ({one_line(error)}).") from error
    names = [*labels, *labels.values()] if isinstance(labels, dict) else labels
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"The labels file {path} holds neither a list of names nor a mapping of names to descriptions: "
            "write each as a string, and quote the names that YAML reads as something else."
        )
    return labels


def _lines(content: str) -> list[str]:
    lines = [line.strip() for line in content.splitlines()]
    if content.lstrip().startswith(("[", "{")):
        raise ValueError("it begins like JSON: give it a name that ends in .json, or write one label a line")
    return [line for line in lines if line]
