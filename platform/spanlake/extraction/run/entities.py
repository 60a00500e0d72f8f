"""Finds the entities of rows: in each of their texts, with the labels of the row. A bad row does not harm others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, described
from spanlake.extraction.output.layout import ColumnEntity
from spanlake.extraction.output.row_labels import RowLabels
from spanlake.extraction.source.texts import Texts, located, read_texts
from spanlake.inference.settings import Settings

ALL_ROWS = -1  # instead of the number of a row: all rows that may be read, together
_DEADLY = "reading the text killed the worker, twice"
_PROBE = "Ada Lovelace wrote to Charles Babbage in London."
_PROBE_LABELS = ("person", "place")  # not those of a row, which may be the reason why it fails


class TextExtractor(Protocol):
    """The part of the Extractor that a unit uses."""

    def stream(
        self, requests: Iterable[tuple[str, Settings]], on_pass: Callable[[int], None] | None = None
    ) -> Iterator[list[Entity]]: ...


class Row(NamedTuple):
    """What to find in one row."""

    texts: Texts
    settings: Settings | None  # None if the row has no labels
    error: str | None  # why it cannot be read; it then has no texts
    deleted: bool = False  # from its table: it has no texts then, and its entities are None


class Found(NamedTuple):
    """What was found in some rows: for each row, its entities, or None and an error."""

    entities: list[list[Entity] | None]
    errors: list[str | None]


class _Request(NamedTuple):
    """One text of a row."""

    row: int
    column: str
    text: str
    settings: Settings


def read_rows(
    batch: pa.RecordBatch,
    text_columns: Sequence[str],
    settings: Settings,
    labels: RowLabels | None,
    *,
    deleted: bool,
) -> list[Row]:
    """Returns what to find in each row. All rows have the same settings, unless a column has their labels.

    In rows that were `deleted` from their table, nothing is looked for.
    """
    if deleted:
        return [Row((None,) * len(text_columns), None, None, deleted=True)] * batch.num_rows
    texts, errors = read_texts(batch, text_columns)
    if labels is None:
        return [Row(own, settings, error) for own, error in zip(texts, errors, strict=True)]
    rows = []
    for own, error, asked in zip(texts, errors, labels.read(batch, settings), strict=True):
        wrong = error or (asked if isinstance(asked, str) else None)
        rows.append(Row((None,) * len(own) if wrong else own, None if isinstance(asked, str) else asked, wrong))
    return rows


def find(
    extractor: TextExtractor,
    text_columns: Sequence[str],
    rows: Sequence[Row],
    on_pass: Callable[[int], None] | None = None,
) -> Found:
    """Returns the entities of each row, or its error: that of reading it, or that of the model.

    Deleted rows have neither.
    `on_pass` receives the number of sub-words of each forward pass.
    Raises ShortfallError if the extractor fails on every text, because the rows are then not at fault.
    """
    requests = _requests(text_columns, rows)
    answers = _extract(extractor, requests, on_pass)
    if any(isinstance(answer, str) for answer in answers):
        _check_alive(extractor)
    errors = [row.error for row in rows]
    found: list[list[tuple[int, list[Entity]]]] = [[] for _ in rows]
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, str):
            errors[request.row] = errors[request.row] or located(request.column, answer, text_columns)
        else:
            found[request.row].append((text_columns.index(request.column), answer))
    entities = [
        None if error or row.deleted else _joined(own, text_columns)
        for row, own, error in zip(rows, found, errors, strict=True)
    ]
    return Found(entities, errors)


def _requests(text_columns: Sequence[str], rows: Sequence[Row]) -> list[_Request]:
    """Returns the texts of the rows in their order, but texts with equal labels together.

    The model reads labels once for all texts that follow each other with the same labels.
    """
    requests = [
        _Request(index, column, text, row.settings)
        for index, row in enumerate(rows)
        if row.settings is not None
        for column, text in zip(text_columns, row.texts, strict=True)
        if text is not None
    ]
    first: dict[Settings, int] = {}
    for request in requests:
        first.setdefault(request.settings, len(first))
    return sorted(requests, key=lambda request: first[request.settings])


def _joined(found: list[tuple[int, list[Entity]]], text_columns: Sequence[str]) -> list[Entity]:
    """Returns the entities of a row. If there are several text columns, each entity says from which it is."""
    if len(text_columns) == 1:
        return [entity for _, entities in found for entity in entities]
    return [
        ColumnEntity(
            entity.start,
            entity.end,
            entity.text,
            entity.label,
            entity.score,
            entity.source,
            column=text_columns[column],
        )
        for column, entities in sorted(found, key=lambda item: item[0])
        for entity in entities
    ]


def find_warily(
    extractor: TextExtractor,
    text_columns: Sequence[str],
    rows: Sequence[Row],
    may_read: Callable[[int], bool],
    on_pass: Callable[[int], None],
) -> Found:
    """Finds the entities of each row by itself, and then of all safe rows together.

    `may_read` is called with the number of each row, from 0, just before that row, and with ALL_ROWS before they are
    processed together. The last bits of a score depend on which texts share a batch. The second pass gives the same
    scores as `find`.
    """
    entities: list[list[Entity] | None] = []
    errors: list[str | None] = []
    for number, row in enumerate(rows):
        found = find(extractor, text_columns, [row]) if may_read(number) else Found([None], [row.error or _DEADLY])
        entities += found.entities
        errors += found.errors
    if not may_read(ALL_ROWS):
        return Found(entities, errors)
    alive = [
        Row((None,) * len(row.texts), None, _DEADLY) if error == _DEADLY else row
        for row, error in zip(rows, errors, strict=True)
    ]
    return find(extractor, text_columns, alive, on_pass)


def _extract(
    extractor: TextExtractor, requests: list[_Request], on_pass: Callable[[int], None] | None
) -> list[list[Entity] | str]:
    """Returns the entities of each text, or the reason if the extractor fails on the text."""
    if not requests:
        return []
    try:
        return list(extractor.stream(((request.text, request.settings) for request in requests), on_pass))
    except Exception as error:  # of any kind; the other texts must not suffer from it
        if len(requests) == 1:
            return [described(error)]
    half = len(requests) // 2
    return _extract(extractor, requests[:half], on_pass) + _extract(extractor, requests[half:], on_pass)


def _check_alive(extractor: TextExtractor) -> None:
    try:
        list(extractor.stream([(_PROBE, Settings.make(_PROBE_LABELS))]))
    except Exception as error:
        raise ShortfallError(f"the model no longer answers ({described(error)})") from error
