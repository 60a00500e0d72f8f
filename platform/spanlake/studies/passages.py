"""Fixed parts of annotated data, written as JSON lines that training and evaluation read."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from spanlake.data.examples import Example
from spanlake.data.readers import BadRecord, read_source
from spanlake.errors import UserError, one_line

_SEED = 0


def shuffled(source: str) -> list[Example]:
    """Returns all examples of a source in a random order, the same at each call.

    Raises `UserError` for a source or a record that cannot be read.
    """
    examples = []
    for record in read_source(source):
        if isinstance(record, BadRecord):
            raise UserError(f"{record.where} cannot be drawn for a study: {record.reason}.")
        examples.append(record.example)
    random.Random(_SEED).shuffle(examples)
    return examples


def write_examples(examples: Sequence[Example], path: Path) -> None:
    """Writes the examples in the format that `spanlake.data.records` calls prepared. Raises `UserError`."""
    lines = []
    for example in examples:
        mentions = [mention.to_dict() for mention in example.mentions]
        lines.append(json.dumps({"text": example.text, "mentions": mentions, "negatives": example.negatives}) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.new")
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({one_line(error)}).") from error
