"""Counts the content of an output in one pass, in memory that does not grow with the output.

Shapes: R rows of a batch, E entities of a batch, L labels.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanlake.extraction.output.ledger import SUFFIX, Ledger, labels_of
from spanlake.extraction.output.passages import Passage, passages_of
from spanlake.extraction.output.rows import batches, committed_units, unit_footer
from spanlake.extraction.source.texts import decoded, text_path, text_type, text_values

BINS = 20  # of a histogram of scores; each is 0.05 wide
_FORMS_KEPT = 100_000  # of all labels together
_FORMS_LEAST = 200  # of each label, however many labels there are
_PASSAGES_PER_LABEL = 3
_FAILURES = 20
_ROW_LABELS = 100  # that are counted, of those that only single rows ask for
_FIELDS = ("label", "text", "score")  # of a mention


class FrequentForms:
    """Counts surface forms, and forgets the rarest when there are more than twice `capacity`.

    A count may be too low by at most `error`. If `error` is 0, all counts are exact and no form is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self.counts: Counter[str] = Counter()
        self.error = 0
        self._capacity = capacity

    def add(self, form: str, count: int) -> None:
        self.counts[form] += count
        if len(self.counts) > 2 * self._capacity:
            kept = self.counts.most_common(self._capacity + 1)
            self.error += kept[-1][1]
            self.counts = Counter(dict(kept[:-1]))


@dataclass(frozen=True)
class Example:
    source: str  # the file of the row
    passage: Passage


@dataclass(frozen=True)
class Failure:
    source: str
    error: str


class Sample:
    """A uniform sample of a sequence, the same for the same sequence (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: str) -> None:
        self.seen = 0
        self.chosen: list[Example] = []
        self._size = size
        self._random = random.Random(seed)

    def place(self) -> int | None:
        """Returns the place of the next item if it is chosen, otherwise None."""
        self.seen += 1
        if len(self.chosen) < self._size:
            return len(self.chosen)
        place = self._random.randrange(self.seen)
        return place if place < self._size else None

    def put(self, place: int, example: Example) -> None:
        self.chosen[place : place + 1] = [example]


@dataclass
class Statistics:
    labels: list[str]  # those that are counted
    other_labels: int = 0  # the number of labels that are not counted, the rarest
    rows: int = 0
    rows_with_entities: int = 0
    failed_rows: int = 0
    histogram_LB: np.ndarray = field(init=False)  # mentions by label and score
    together_LL: np.ndarray = field(init=False)  # rows with both labels; on the diagonal, rows with the label
    forms: dict[str, FrequentForms] = field(init=False)
    samples: dict[str, Sample] = field(init=False)
    errors: FrequentForms = field(init=False)
    failures: list[Failure] = field(default_factory=list)  # the first ones

    def __post_init__(self) -> None:
        capacity = max(_FORMS_LEAST, _FORMS_KEPT // max(1, len(self.labels)))
        self.histogram_LB = np.zeros((len(self.labels), BINS), np.int64)
        self.together_LL = np.zeros((len(self.labels), len(self.labels)), np.int64)
        self.forms = {label: FrequentForms(capacity) for label in self.labels}
        self.samples = {label: Sample(_PASSAGES_PER_LABEL, label) for label in self.labels}
        self.errors = FrequentForms(_FORMS_LEAST)

    @property
    def mentions_L(self) -> np.ndarray:
        return self.histogram_LB.sum(axis=1)

    def add_rows(self, source: str, texts: Mapping[str, pa.Array], entities: pa.Array, errors: pa.Array) -> None:
        """Adds a batch of rows: texts (R) by text column, if the output has texts; entities (R lists); errors (R)."""
        flat_E = pc.list_flatten(entities)
        row_E = pc.list_parent_indices(entities).to_numpy(zero_copy_only=False)
        present_RL = self._count(*(pc.struct_field(flat_E, name) for name in _FIELDS), row_E=row_E, rows=len(entities))
        self._note_failures(source, errors)
        if texts:
            self._choose_passages(source, present_RL, texts, entities)

    def add_mentions(self, source: str, rows: int, mentions: pa.RecordBatch | pa.Table) -> None:
        """Adds the mentions of `rows` source rows: one row for each mention, and one for each row with an error."""
        found = mentions.filter(pc.is_valid(mentions.column("label")))
        numbers = found.column("source_row").to_numpy()
        row_E = np.unique(numbers, return_inverse=True)[1]
        self._count(*(found.column(name) for name in _FIELDS), row_E=row_E, rows=rows)
        self._note_failures(source, mentions.column("error"))

    def _count(
        self, label_E: pa.Array, text_E: pa.Array, score_E: pa.Array, *, row_E: np.ndarray, rows: int
    ) -> np.ndarray:
        """Returns which labels are present in each row (R, L)."""
        index_E = pc.index_in(label_E, value_set=pa.array(self.labels, pa.string()))
        if index_E.null_count:  # labels that are not counted
            counted_E = index_E.is_valid()
            label_E, text_E, score_E, index_E = (v.filter(counted_E) for v in (label_E, text_E, score_E, index_E))
            row_E = row_E[counted_E.to_numpy(zero_copy_only=False)]
        index_E = index_E.to_numpy(zero_copy_only=False)
        self._count_scores(index_E, score_E.to_numpy(zero_copy_only=False))
        self._count_forms(label_E, text_E)
        present_RL = np.zeros((rows, len(self.labels)), bool)
        present_RL[row_E, index_E] = True
        self.together_LL += present_RL.T.astype(np.int64) @ present_RL.astype(np.int64)
        self.rows += rows
        self.rows_with_entities += int(present_RL.any(axis=1).sum())
        return present_RL

    def _count_scores(self, label_E: np.ndarray, score_E: np.ndarray) -> None:
        bin_E = np.clip((score_E * BINS).astype(np.int64), 0, BINS - 1)
        size = len(self.labels) * BINS
        self.histogram_LB += np.bincount(label_E * BINS + bin_E, minlength=size).reshape(-1, BINS)

    def _count_forms(self, label_E: pa.Array, text_E: pa.Array) -> None:
        table = pa.table({"label": label_E, "text": text_E}).drop_null()  # an output without texts has no forms
        for row in table.group_by(["label", "text"]).aggregate([([], "count_all")]).to_pylist():
            self.forms[row["label"]].add(row["text"], row["count_all"])

    def _choose_passages(
        self, source: str, present_RL: np.ndarray, texts: Mapping[str, pa.Array], entities: pa.Array
    ) -> None:
        for label, name in enumerate(self.labels):
            for row in np.flatnonzero(present_RL[:, label]).tolist():
                place = self.samples[name].place()
                if place is not None:
                    passages = passages_of({column: values[row] for column, values in texts.items()}, entities[row])
                    chosen = next(found for found in passages if any(e["label"] == name for e in found.entities))
                    self.samples[name].put(place, Example(source, chosen))

    def _note_failures(self, source: str, errors: pa.Array) -> None:
        failed = pc.drop_null(errors)
        self.failed_rows += len(failed)
        for counted in pc.value_counts(failed).to_pylist():
            self.errors.add(counted["values"], counted["counts"])
        room = _FAILURES - len(self.failures)
        self.failures += [Failure(source, error) for error in failed[:room].to_pylist()]


def gather(ledger: Ledger) -> Statistics:
    """Returns the statistics of all committed units."""
    labels, others = _labels(ledger)
    found = Statistics(labels, others)
    if "entities" in ledger.schema.names:
        _gather_rows(ledger, found)
    else:
        _gather_mentions(ledger, found)
    return found


def _labels(ledger: Ledger) -> tuple[list[str], int]:
    """Returns the labels to count: all of the run, and the most frequent ones of single rows. And how many are left."""
    labels: list[str] = labels_of(ledger.manifest)
    if "labels_column" not in ledger.manifest:
        return labels, 0
    counts: Counter[str] = Counter()
    for unit in committed_units(ledger):
        path = ledger.output.child(unit.name + SUFFIX)
        said = unit_footer(pq.read_metadata(path, filesystem=ledger.output.filesystem)) or {}
        counts.update(said.get("by_label", {}))
    others = [label for label, _ in counts.most_common() if label not in labels]
    return [*labels, *others[:_ROW_LABELS]], len(others[_ROW_LABELS:])


def _gather_rows(ledger: Ledger, found: Statistics) -> None:
    names = [name for name in ledger.text_columns if text_type(ledger.schema, name) is not None]
    columns = dict.fromkeys(text_path(ledger.schema.names, name)[0] for name in names)
    for unit in committed_units(ledger):
        for batch in batches(ledger, unit, [*columns, "entities", "error"]):
            texts = {name: decoded(text_values(batch, name)) for name in names}
            found.add_rows(unit.path, texts, batch.column("entities"), batch.column("error"))


def _gather_mentions(ledger: Ledger, found: Statistics) -> None:
    """Adds the mentions of whole units, because the mentions of one row may be in two batches."""
    columns = ["source_row", *_FIELDS, "error"]
    schema = pa.schema([ledger.schema.field(name) for name in columns])
    for unit in committed_units(ledger):
        found.add_mentions(unit.path, unit.rows, pa.Table.from_batches(list(batches(ledger, unit, columns)), schema))


def pairs(found: Statistics, most: int) -> Sequence[tuple[str, str, int]]:
    """Returns the pairs of labels that occur together in most rows."""
    upper = np.triu(found.together_LL, k=1)
    order = np.argsort(-upper, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(found.labels)) for place in order]
    return [(found.labels[i], found.labels[j], int(upper[i, j])) for i, j in places if upper[i, j]]
