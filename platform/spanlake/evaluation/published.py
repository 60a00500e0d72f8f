"""Published F1 on the suites' sets, each row with its source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spanlake.errors import UserError, one_line


@dataclass(frozen=True)
class PublishedRow:
    model: str
    suite: str
    source: str
    f1: Mapping[str, float]  # per cent, by the names of sets and averages; only what the source gives


def published_rows(suite: str, file: Path | None = None) -> list[PublishedRow]:
    """Returns the rows of a suite: those of this package, then those of a file in the format of `published.json`.

    Raises `UserError` for a file of another format.
    """
    own = json.loads(files("spanlake.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
    rows = [_row(value) for value in own]
    if file is not None:
        try:
            rows += [_row(value) for value in json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is not a list of published rows ({one_line(error)}); each must be "
                '{"model", "suite", "source", "f1": {set: per cent}}.'
            ) from error
    return [row for row in rows if row.suite == suite]


def _row(value: Any) -> PublishedRow:
    f1 = {str(name): float(score) for name, score in value["f1"].items()}
    return PublishedRow(str(value["model"]), str(value["suite"]), str(value["source"]), f1)
