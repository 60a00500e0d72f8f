"""Reads annotated texts from files, directories, data sets saved by `datasets`, and the Hugging Face Hub.

A source yields the example of each record, or the reason why the record has none. Files are read record by record, so
they may be of any size.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.data.records import TAG_COLUMNS, Format, NoExample, Parsed, Reading, parse_record
from spanlake.data.tags import read_tag_lines
from spanlake.errors import UserError, one_line

_JSON = (".json", ".jsonl", ".ndjson")
_TAG_LINES = (".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv")
_PARQUET = (".parquet",)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 20  # characters
_BETWEEN = " \t\r\n,"  # between items of a JSON list


@dataclass(frozen=True)
class BadRecord:
    where: str  # the file, and the line or record in the file
    reason: str


def read_source(source: str, form: Format = "auto", splitter: str = "gliner") -> Iterator[Parsed | BadRecord]:
    """Yields the content of each record in `source`, in order.

    `source` is a file, a directory of files, a directory written by `datasets`, or the Hub id of a data set. The last
    two take `:SPLIT` for another split than `train`. Mentions that are given as strings are found at the edges of the
    words of `splitter`.

    Raises `UserError` for a source that cannot be read at all.
    """
    reading = Reading(form, splitter)
    path = Path(source)
    name, _, split = source.rpartition(":")
    if path.is_file():
        yield from _read_file(path, reading)
    elif is_saved(path):
        yield from _read_saved(path, "train", reading)
    elif path.is_dir():
        readable, _ = files_in(path)
        if not readable:
            raise UserError(
                f"The directory {source} has no file whose name ends in {', '.join((*_JSON, *_PARQUET, *_TAG_LINES))}."
            )
        for file in readable:
            yield from _read_file(file, reading)
    elif name and is_saved(Path(name)):
        yield from _read_saved(Path(name), split, reading)
    elif _HUB_ID.fullmatch(name or source) and not _kind(path) and not path.parent.is_dir():
        yield from _read_hub(name or source, split if name else "train", reading)
    else:
        raise UserError(f"There is no file or directory {source!r}; give one, or a Hub id such as owner/name.")


def files_in(directory: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files below a directory that `read_source` reads, and those that it does not, both sorted by name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    files = [path for path in files if not any(part[0] in "._" for part in path.relative_to(directory).parts)]
    if (directory / "statistics.json").is_file():  # part of a prepared directory
        files.remove(directory / "statistics.json")
    readable = [path for path in files if _kind(path) in (*_JSON, *_PARQUET, *_TAG_LINES)]
    return readable, [path for path in files if path not in {*readable}]


def _kind(path: Path) -> str:
    """Returns the suffix of a file that shows its format, without the suffix of its compression."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, reading: Reading) -> Iterator[Parsed | BadRecord]:
    kind = _kind(path)
    try:
        if kind in _PARQUET:
            records = _parquet_rows(path)
        elif kind in _JSON:
            records = _json_records(path)
        elif kind in _TAG_LINES:
            records = _tagged_sentences(path)
        else:
            raise UserError(f"The file {path} does not end in one of {', '.join((*_JSON, *_PARQUET, *_TAG_LINES))}.")
        for where, record in records:
            yield _outcome(f"{path}, {where}", record, reading)
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"The file {path} cannot be read ({one_line(error)}).") from error


def _outcome(where: str, record: Any, reading: Reading, tag_names: Iterable[str] = ()) -> Parsed | BadRecord:
    if isinstance(record, NoExample):
        return BadRecord(where, str(record))
    try:
        return parse_record(record, replace(reading, tag_names=tuple(tag_names)))
    except NoExample as error:
        return BadRecord(where, str(error))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        first = file.read(4096).lstrip(codecs.BOM_UTF8).lstrip()[:1]
    with _open(path) as file:
        if first == b"[":
            for number, record in enumerate(_json_list(file, path), 1):
                yield f"record {number}", record
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                record = NoExample(f"it is not JSON ({one_line(error)})")
            yield f"line {number}", record


def _json_list(file: IO[bytes], path: Path) -> Iterator[Any]:
    """Yields the items of a file that is one JSON list, one by one.

    Raises `UserError` if the list breaks off, because nothing can be read after that.
    """
    decoder, scanner = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, at, count, ended, size = "", 0, 0, False, _CHUNK
    while True:
        at = _after(text, at, _BETWEEN if count else _BETWEEN + "[")
        if text[at : at + 1] == "]":
            return
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            if ended:
                raise UserError(
                    f"The JSON list in {path} breaks off after record {count} ({one_line(error)}); correct the file."
                ) from error
            chunk = file.read(size)
            ended, size = not chunk, 2 * size  # doubled, so that a long item needs few attempts
            text, at = text[at:] + scanner.decode(chunk, final=ended), 0
            continue
        count, size = count + 1, _CHUNK
        yield item


def _after(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _tagged_sentences(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        lines = (line.decode("utf-8-sig", errors="strict") for line in file)
        for number, sentence in read_tag_lines(lines):
            yield f"line {number}", NoExample(sentence) if isinstance(sentence, str) else sentence


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else memory would grow with what was read
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


# --- data sets of the `datasets` library -----------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _read_saved(path: Path, split: str, reading: Reading) -> Iterator[Parsed | BadRecord]:
    datasets = _library()
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds
        raise UserError(f"The data set saved in {path} cannot be read ({one_line(error)}).") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"The data set in {path} has no split {split!r}; it has {', '.join(saved)}.")
        saved = saved[split]
    yield from _rows(saved, f"{path}:{split}", reading)


def _read_hub(name: str, split: str, reading: Reading) -> Iterator[Parsed | BadRecord]:
    datasets = _library()
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds
        raise UserError(
            f"There is no file or directory {name!r}, and the Hugging Face Hub did not give a data set of that name "
            f"and split {split!r} ({one_line(error)}); without a network, fetch its files and give their paths."
        ) from error
    yield from _rows(loaded, f"{name}:{split}", reading)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("This kind of data set needs the datasets library: pip install 'spanlake[train]'.") from error
    return datasets


def _rows(dataset: Any, where: str, reading: Reading) -> Iterator[Parsed | BadRecord]:
    column = next((name for name in TAG_COLUMNS if name in dataset.features), None)
    feature = dataset.features[column] if column else None
    names = getattr(getattr(feature, "feature", None), "names", ())
    for number, row in enumerate(dataset, 1):
        yield _outcome(f"{where}, row {number}", row, reading, names)
