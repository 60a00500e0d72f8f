"""Annotated sets to score a model on: where they are, and what each text is asked for.

A set is a directory with `labels.json` (every type to ask for) and `test.json`, `dev.json` or `train.json`, the layout
of the out-of-domain benchmark (Zaratiana et al. 2023, Table 1), or whatever `spanlake.data.readers` reads, with the
part in its name: `NAME/test.jsonl`, `NAME_test.conll`, `NAME.test.parquet`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from spanlake.data.examples import Example, read_sentences
from spanlake.data.readers import BadRecord, files_in, is_saved, read_source
from spanlake.data.statistics import SourceStatistics
from spanlake.errors import UserError, one_line
from spanlake.evaluation.metrics import Span
from spanlake.splitters.find import find_splitter

Split = Literal["train", "dev", "test"]
_SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}
_SHARD = r"(?:-\d+-of-\d+)?"


@dataclass(frozen=True)
class BenchmarkSet:
    name: str
    labels: tuple[str, ...]  # of every text; if empty, each text is asked for its own types and its absent ones
    examples: tuple[Example, ...]
    nested: bool = False

    def asked(self, example: Example) -> list[str]:
        """Returns the types that a text is asked for, in lower case as in the paper's evaluation."""
        labels = self.labels or [*(mention.label for mention in example.mentions), *example.negatives]
        return list(dict.fromkeys(label.lower() for label in labels))

    @cached_property
    def gold(self) -> tuple[frozenset[Span], ...]:
        """Returns the mentions of each text."""
        return tuple(
            frozenset((mention.start, mention.end, mention.label.lower()) for mention in example.mentions)
            for example in self.examples
        )

    def unfindable(self, max_width: int, splitter: str = "gliner") -> dict[str, int]:
        """Returns how many mentions a model cannot find, by reason. They count as missed.

        `splitter` cuts the model's words, and `max_width` is the width in words of its widest span.
        """
        statistics = SourceStatistics(self.name, "")
        for example in self.examples:
            statistics.add(example, max_width, find_splitter(splitter))
        return {reason: count for reason, count in statistics.unusable.items() if count}


def read_sets(data: str | Path, split: Split, renamed: Mapping[str, str] | None = None) -> list[BenchmarkSet]:
    """Returns the sets that `data` names: one set, or all sets below a directory.

    `data` may also be a file, a data set of the `datasets` library or a Hub id; then every record is read.
    `renamed`: from a label to the name that is asked for.

    Raises `UserError` if there is no set, or if one cannot be read.
    """
    found = find_sources(Path(data), split)
    if not found and (Path(data).is_file() or is_saved(Path(data)) or not str(data).startswith((".", "/"))):
        found = {Path(data).name: str(data)}
    if not found:
        raise UserError(
            f"{data} holds no benchmark set; a set is a directory with labels.json and {split}.json, or a file such as "
            f"NAME_{split}.jsonl."
        )
    return [read_set(name, source, split, renamed=renamed or {}) for name, source in found.items()]


def find_sources(directory: Path, split: Split) -> dict[str, str]:
    """Returns the sets in a directory and below it: their names, and what `read_set` reads for each.

    Sets with equal names are named by their paths.
    """
    if (directory / "labels.json").is_file():
        return {directory.name: str(directory)}
    if not directory.is_dir() or is_saved(directory):
        return {}
    homes = sorted(path.parent for path in directory.rglob("labels.json"))
    whole = [home for home in homes if (home / f"{split}.json").is_file()]
    saved = sorted(path.parent for path in directory.rglob("dataset_dict.json"))
    files = [path for path in files_in(directory)[0] if not any(home in path.parents for home in homes)]
    found: dict[str, str] = {}
    for path in [*whole, *saved, *files]:
        name = _name_of(path, split) if path.is_file() else path.name
        if name:
            found[str(path.relative_to(directory)) if name in found else name] = str(path)
    return found


def _name_of(path: Path, split: Split) -> str | None:
    """Returns the name of a file's set. A file that is named only after the split has the name of its directory."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    match = re.fullmatch(rf"(?:(.+)[_.-])?(?:{'|'.join(_SPLIT_NAMES[split])}){_SHARD}", stem)
    return (match[1] or path.parent.name) if match else None


def read_set(
    name: str, source: str, split: Split, *, nested: bool = False, renamed: Mapping[str, str] | None = None
) -> BenchmarkSet:
    """Reads a set of `find_sources`, or any source of `spanlake.data.readers`.

    Raises `UserError` for a set that cannot be read, a record that is no annotated text, and a set without mentions.
    """
    renamed = renamed or {}
    home = Path(source)
    labels: tuple[str, ...] = ()
    if (home / "labels.json").is_file():
        labels = tuple(renamed.get(label, label) for label in _read_labels(home / "labels.json"))
        examples = [_renamed(example, renamed) for example in read_sentences(home / f"{split}.json")]
    else:
        examples = [_renamed(example, renamed) for example in _read_examples(source, split)]
        if not any(example.negatives for example in examples):
            labels = tuple(sorted({mention.label for example in examples for mention in example.mentions}))
    if not any(example.mentions for example in examples):
        raise UserError(
            f"The set {name} ({source}) has no mention in its {len(examples)} texts; nothing can be scored."
        )
    return BenchmarkSet(name, labels, tuple(examples), nested)


def renaming(text: str) -> tuple[str, str]:
    """Reads `OLD=NEW`. Raises `UserError` for anything else."""
    old, _, new = text.partition("=")
    if not old.strip() or not new.strip():
        raise UserError(f"--rename {text!r} is not of the form OLD=NEW.")
    return old, new


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({one_line(error)}).") from error
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path} is not a JSON list of type names; give one with all of the set's types.")
    return tuple(labels)


def _read_examples(source: str, split: Split) -> Iterator[Example]:
    if is_saved(Path(source)):
        names = [path.name for path in Path(source).iterdir() if path.name in _SPLIT_NAMES[split]]
        source = f"{source}:{names[0]}" if names else source
    for outcome in read_source(source):
        if isinstance(outcome, BadRecord):
            raise UserError(f"{outcome.where} cannot be scored: {outcome.reason}.")
        yield outcome.example


def _renamed(example: Example, renamed: Mapping[str, str]) -> Example:
    if not renamed:
        return example
    mentions = tuple(replace(mention, label=renamed.get(mention.label, mention.label)) for mention in example.mentions)
    return replace(example, mentions=mentions)
