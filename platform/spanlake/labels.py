"""The forms of labels and thresholds in calls, and the reading of labels from a command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spanlake.errors import UserError, one_line, shown
from spanlake.strict_yaml import load_yaml
from spanlake.text import replace_surrogates

Labels = Sequence[str] | Mapping[str, str]  # names, or names -> descriptions that the model reads in their place
Threshold = float | Sequence[float] | Mapping[str, float]  # for all labels, for each in order, or for each by name

_YAML_SUFFIXES = (".json", ".yaml", ".yml")  # JSON is YAML too


class LabelSet(NamedTuple):
    labels: Labels
    thresholds: dict[str, float]  # of the labels that have one of their own


def parse_labels(argument: str) -> LabelSet:
    """Returns the labels of a command-line argument: names with commas between, or `@FILE`.

    The commas are those of CSV: double quotes hold a name together, as in `person,"city, state"`. A file named .json,
    .yaml or .yml holds a list of names, or a mapping of names to descriptions or to mappings with a `description` and
    a `threshold`; any other file holds one name a line.

    Raises `UserError` for a quote that is never closed, and for a file that cannot be read.
    """
    if argument.startswith("@"):
        return _read_file(Path(argument[1:]))
    return LabelSet(split_names(argument, "label"), {})


def parse_thresholds(arguments: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """Returns the threshold for all labels, if there is one, and those for single labels.

    An argument is a number, or a label, `=` and a number. The last one that is given for a label counts.

    Raises `UserError` for any other argument.
    """
    threshold: float | None = None
    by_label: dict[str, float] = {}
    for argument in arguments:
        label, equals, number = argument.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise UserError(
                f"The threshold {shown(argument)} is not a number, nor a label with a number: "
                "give one as in 0.5 or person=0.7."
            ) from error
        if equals:
            by_label[label.strip()] = value
        else:
            threshold = value
    return threshold, by_label


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
    return [clean_name(name) for row in rows for name in row]


def clean_name(name: str) -> str:
    """Returns a name without spaces at its edges, and with U+FFFD for each lone surrogate."""
    return replace_surrogates(name).strip()


def _read_file(path: Path) -> LabelSet:
    try:
        content = path.read_text(encoding="utf-8-sig")
        found = load_yaml(content) if path.suffix.lower() in _YAML_SUFFIXES else _lines(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The labels file {path} cannot be read ({one_line(error)}).") from error
    if isinstance(found, dict) and any(isinstance(value, dict) for value in found.values()):
        return _read_mapping(path, found)
    names = [*found, *found.values()] if isinstance(found, dict) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"The labels file {path} holds neither a list of names nor a mapping of names to descriptions: "
            "write each as a string, and quote the names that YAML reads as something else."
        )
    return LabelSet(found, {})


def _read_mapping(path: Path, found: dict[Any, Any]) -> LabelSet:
    """Returns labels with the description and the threshold that each may have."""
    labels: dict[str, str] = {}
    thresholds: dict[str, float] = {}
    for name, value in found.items():
        about = value if isinstance(value, dict) else {"description": value}
        description, threshold = about.get("description", name), about.get("threshold")
        sound = (
            isinstance(name, str) and isinstance(description, str) and isinstance(threshold, (int, float, type(None)))
        )
        if not sound or not about.keys() <= {"description", "threshold"}:
            raise UserError(
                f"The labels file {path} has {shown(value)} for the label {shown(name)}: give a description as a "
                "string, or a mapping with a description, a threshold or both."
            )
        labels[name] = description
        if threshold is not None:
            thresholds[name] = threshold
    return LabelSet(labels, thresholds)


def _lines(content: str) -> list[str]:
    lines = [line.strip() for line in content.splitlines()]
    if content.lstrip().startswith(("[", "{")):
        raise ValueError("it begins like JSON: give it a name that ends in .json, or write one label a line")
    return [line for line in lines if line]
