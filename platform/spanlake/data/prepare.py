"""Converts sources of any format to the training format (see `prepared`)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.data.examples import Example, mention_of
from spanlake.data.prepared import FORMAT_VERSION, SCHEMA, STATISTICS, read_statistics
from spanlake.data.readers import BadRecord, files_in, read_source
from spanlake.data.records import Format
from spanlake.data.statistics import SourceStatistics
from spanlake.errors import UserError, one_line, shown
from spanlake.splitters.find import Splitter, find_splitter
from spanlake.storage import Place
from spanlake.text import replace_surrogates

_UNFINISHED = "unfinished.json"  # in the directory until it is complete
_ROW_GROUP = 256  # rows that training reads at once; smaller groups give a better shuffle
_FILE_ROWS = 100_000
_SHOWN_BAD = 20  # bad records that the statistics name
_EARLY = 1_000  # records after which the rate of bad records is first checked


def prepare(
    sources: Sequence[str],
    place: Place,
    *,
    form: Format = "auto",
    max_width: int = 12,
    max_bad_rate: float = 0.01,
    renamed: Mapping[str, str] | None = None,
    splitter: str = "gliner",
) -> dict[str, Any]:
    """Writes the sources to a directory, and returns its statistics.

    The statistics count mentions wider than `max_width` words of `splitter`. These mentions are kept, so that scores
    count them as missed. Mentions that are given as strings are found at the edges of these words. `renamed` maps
    labels to their new names. A directory with the same preparation stays as it is.

    Raises `UserError` for a source that cannot be read, for a source with a larger share of bad records than
    `max_bad_rate`, for a directory with other content, and for a splitter that is unknown or not installed.
    """
    if not sources:
        raise UserError("There are no sources; give files, directories or Hub ids.")
    if max_width < 1 or not 0 <= max_bad_rate <= 1:
        raise UserError(
            f"max_width is {max_width} and max_bad_rate {max_bad_rate}; give at least 1 and a number from 0 to 1."
        )
    find_splitter(splitter)
    renamed = dict(renamed or {})
    request = {
        "format_version": FORMAT_VERSION,
        "sources": {source: _identity(source) for source in sources},
        "format": form,
        "max_width": max_width,
        "renamed": renamed,
        "splitter": splitter,
    }
    finished = _prepared_before(place, request)
    if finished is not None:
        return finished
    names = _names(sources)
    try:
        place.filesystem.create_dir(place.path, recursive=True)
        place.write(_UNFINISHED, _json(request))
        found = [
            _write_source(place, name, source, form, max_width, max_bad_rate, renamed, splitter)
            for name, source in zip(names, sources, strict=True)
        ]
        statistics = _summary(found, request)
        place.write(STATISTICS, _json(statistics))
        place.filesystem.delete_file(place.child(_UNFINISHED))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"The directory {place.uri} cannot be written ({one_line(error)}).") from error
    return statistics


def _write_source(
    place: Place,
    name: str,
    source: str,
    form: Format,
    max_width: int,
    max_bad_rate: float,
    renamed: Mapping[str, str],
    splitter: str,
) -> SourceStatistics:
    statistics = SourceStatistics(name, source)
    if Path(source).is_dir():
        statistics.files_not_read = [str(file) for file in files_in(Path(source))[1]]
    outcomes = read_source(source, form, splitter)
    rows = _rows(outcomes, statistics, max_width, max_bad_rate, renamed, find_splitter(splitter))
    number, ended = 0, False
    while not ended:
        path = place.child(f"{name}-{number:05d}.parquet")
        with pq.ParquetWriter(path, SCHEMA, filesystem=place.filesystem) as writer:
            for _ in range(0, _FILE_ROWS, _ROW_GROUP):
                group = [row for _, row in zip(range(_ROW_GROUP), rows, strict=False)]
                if group:
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                ended = len(group) < _ROW_GROUP
                if ended:
                    break
        number += 1
    _judge(statistics, max_bad_rate)
    if not statistics.examples:
        raise UserError(f"The source {source} holds no examples.")
    return statistics


def _rows(
    outcomes: Iterator[Any],
    statistics: SourceStatistics,
    max_width: int,
    max_bad_rate: float,
    renamed: Mapping[str, str],
    split: Splitter,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of one source, and counts them."""
    for outcome in outcomes:
        if isinstance(outcome, BadRecord):
            statistics.bad_records += 1
            if len(statistics.first_bad) < _SHOWN_BAD:
                statistics.first_bad.append(f"{outcome.where}: {shown(outcome.reason)[1:-1]}")
            if statistics.records >= _EARLY:
                _judge(statistics, max_bad_rate)
            continue
        example = _clean(outcome.example, renamed)
        statistics.add(example, max_width, split)
        statistics.dropped.update(outcome.dropped)
        mentions = [mention.to_dict() for mention in example.mentions]
        yield {
            "text": example.text,
            "mentions": mentions,
            "negatives": list(example.negatives),
            "source": statistics.name,
        }


def _clean(example: Example, renamed: Mapping[str, str]) -> Example:
    """Returns the example with renamed labels, sorted mentions without repetition, and text that UTF-8 can encode."""

    def named(label: str) -> str:
        return replace_surrogates(renamed.get(label, label).strip())

    mentions = {mention_of(m.start, m.end, list(map(named, m.types))) for m in example.mentions}
    own = {label for mention in mentions for label in mention.types}
    negatives = dict.fromkeys(named(label) for label in example.negatives)
    return Example(
        replace_surrogates(example.text),
        tuple(sorted(mentions, key=lambda mention: (mention.start, mention.end, mention.types))),
        tuple(label for label in negatives if label not in own),
    )


def _judge(statistics: SourceStatistics, max_bad_rate: float) -> None:
    bad, records = statistics.bad_records, statistics.records
    if records and bad / records > max_bad_rate:
        raise UserError(
            f"{bad} of {records} records of {statistics.source} cannot be read, more than the rate {max_bad_rate:g} "
            f"allows; the first: {statistics.first_bad[0]}."
        )


def _summary(found: Sequence[SourceStatistics], request: Mapping[str, Any]) -> dict[str, Any]:
    types: Counter[str] = sum((source.types for source in found), Counter())
    return {
        "format_version": FORMAT_VERSION,
        "request": dict(request),
        "examples": sum(source.examples for source in found),
        "mentions": sum(source.mentions for source in found),
        "mentions_in_levels": sum(source.mentions_in_levels for source in found),
        "types": len(types),
        "words": sum(source.words for source in found),
        "longest_text": max(source.longest_text for source in found),
        "longest_mention": max(source.longest_mention for source in found),
        "dropped": dict(sum((source.dropped for source in found), Counter())),
        "unusable": dict(sum((source.unusable for source in found), Counter())),
        "bad_records": sum(source.bad_records for source in found),
        "sources": [source.to_dict() for source in found],
    }


def _identity(source: str) -> list[Any]:
    """Returns name, size and time of a source's files, which show whether it has changed; nothing for a Hub id."""
    path = Path(source)
    files = [path] if path.is_file() else files_in(path)[0] if path.is_dir() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _names(sources: Sequence[str]) -> list[str]:
    """Returns a short name for each source that is unique and fit for a file."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        stem = re.sub(r"(\.(gz|jsonl?|ndjson|parquet|conll|bio|iob2?|txt|tsv))+$", "", path.name)
        if stem in ("train", "dev", "test", "validation", "data"):
            stem = f"{path.parent.name}-{stem}"
        name = re.sub(r"[^\w.-]+", "_", stem).strip("._-") or "source"
        taken = {*names}
        names.append(next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(sources) + 2))) if n not in taken))
    return names


def _prepared_before(place: Place, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the statistics if the directory has the same preparation. Deletes the rest of an interrupted one."""
    try:
        present = place.list(recursive=False)
    except OSError as error:
        raise UserError(f"The directory {place.uri} cannot be read ({one_line(error)}).") from error
    if not present:
        return None
    names = {info.base_name for info in present}
    if _UNFINISHED in names:
        for info in present:
            if info.base_name == STATISTICS or info.base_name.endswith(".parquet"):
                place.filesystem.delete_file(info.path)
        return None
    statistics = read_statistics(place) if STATISTICS in names else None
    if statistics is None:
        raise UserError(f"The directory {place.uri} has other content ({sorted(names)[0]}); give a new directory.")
    before = {"splitter": "gliner", **statistics["request"]}  # older preparations do not name it
    different = [key for key in request if before.get(key) != request[key] and key != "format_version"]
    if different:
        raise UserError(
            f"The directory {place.uri} has another preparation: its {different[0]} is "
            f"{shown(before.get(different[0]))} and not {shown(request[different[0]])}; give a new directory."
        )
    return statistics


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
