"""Streams prepared data sets as the endless sequence of batches that a run trains on.

The sequence depends only on the data sets, the seed and the size of a batch. It does not depend on the number of
workers, or on interruptions of the run. An epoch is cut into pools of row groups, drawn at random from all data sets.
Two pools are in memory at a time.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spanlake.data.batches import TokenizedExample, plan_epoch, tokenize
from spanlake.data.examples import Example, mention_of, sentences_of
from spanlake.data.prepared import examples_of, read_statistics
from spanlake.data.statistics import SourceStatistics
from spanlake.errors import UserError, one_line
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import ModelTokenizer
from spanlake.splitters.find import find_splitter
from spanlake.storage import Place

_POOL_ROWS = 4096
PROMPT_ROOM = 64  # sub-words that the planning of batches reserves for the prompt of a text


@dataclass(frozen=True)
class PreparedSet:
    """One source of a prepared directory."""

    name: str
    place: Place  # the directory
    groups: tuple[tuple[str, int, int], ...]  # file, row group in it, rows
    types: Mapping[str, int]  # number of mentions of each type
    mention_widths: Mapping[int, int]  # width in words -> number of mentions
    inside_words: int = 0  # mentions that begin or end inside a word
    splitter: str = "gliner"  # which cut the words

    @property
    def rows(self) -> int:
        return sum(rows for *_, rows in self.groups)

    def held_out(self, limit: int, seed: int) -> frozenset[int]:
        """Returns the rows that are held out for the dev score: `limit` of them, but at most a tenth."""
        size = min(limit, self.rows // 10)
        rng = np.random.default_rng((seed, 3, zlib.crc32(self.name.encode())))
        return frozenset(rng.choice(self.rows, size, replace=False).tolist())

    def examples(self, rows: frozenset[int] | None = None) -> list[Example]:
        """Returns the examples at these rows, or all, in memory."""
        found: list[Example] = []
        at = 0
        with _Files(self.place) as files:
            for file, group, size in self.groups:
                wanted = [row - at for row in range(at, at + size) if rows is None or row in rows]
                if wanted:
                    found += examples_of(files.row_group(file, group).take(wanted))
                at += size
        return found

    def counted_in(self, splitter: str) -> PreparedSet:
        """Returns the set with its mentions counted in the words of this splitter. It reads every text if need be."""
        if splitter == self.splitter:
            return self
        counts = SourceStatistics(self.name, self.place.uri)
        with _Files(self.place) as files:
            for file, group, _ in self.groups:
                for example in examples_of(files.row_group(file, group)):
                    counts.add(example, 1, find_splitter(splitter))
        return replace(
            self,
            mention_widths=counts.mention_widths,
            inside_words=counts.unusable["inside_a_word"],
            splitter=splitter,
        )


def open_prepared(place: Place) -> list[PreparedSet]:
    """Returns the data sets in a prepared directory.

    Raises `UserError` if there are none, or if a file cannot be read.
    """
    statistics = read_statistics(place)
    if statistics is None:
        raise UserError(f"{place.uri} is not a prepared data set; `spanlake data prepare` writes one.")
    groups: dict[str, list[tuple[str, int, int]]] = {}
    try:
        names = sorted(info.base_name for info in place.list(recursive=False))
        for name in names:
            match = re.fullmatch(r"(.+)-\d{5,}\.parquet", name)
            if match:
                footer = pq.read_metadata(place.child(name), filesystem=place.filesystem)
                found = groups.setdefault(match[1], [])
                found += [(name, group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"The prepared data set {place.uri} cannot be read ({one_line(error)}).") from error
    sets = []
    for source in statistics["sources"]:
        widths = {int(width): number for width, number in source["mention_widths"].items()}
        prepared = PreparedSet(
            source["name"],
            place,
            tuple(groups.get(source["name"], ())),
            source["types"],
            widths,
            source["unusable"].get("inside_a_word", 0),
            statistics["request"].get("splitter", "gliner"),
        )
        if prepared.rows != source["examples"]:
            raise UserError(
                f"The prepared data set {place.uri} lacks rows of {source['name']}: it has {prepared.rows} of "
                f"{source['examples']}; prepare it again."
            )
        sets.append(prepared)
    return sets


@dataclass(frozen=True)
class Position:
    """The progress of a run: all epochs and pools before this one, and `batch` batches of this pool."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class StreamBatch:
    examples: tuple[TokenizedExample, ...]  # the examples of one optimiser step on all workers, the shortest first
    position: Position  # after this batch: where to continue


@dataclass(frozen=True)
class PoolPlan:
    """The part of the data that is read at once."""

    epoch: int
    number: int
    pieces: tuple[tuple[int, int, float], ...]  # data set, row group in it, share of its rows


Pool: TypeAlias = list[TokenizedExample]


@dataclass(frozen=True)
class ExampleStream:
    """The batches of a run. It can be pickled, so that `load` can run in any process."""

    sets: Sequence[PreparedSet]
    weights: Sequence[float]  # for each set, how often an epoch reads it
    tokenizer: ModelTokenizer
    config: ModelConfig
    seed: int
    batch_tokens: int
    batch_texts: int
    held_out: int = 0
    ignored_types: frozenset[str] = field(default_factory=frozenset)
    sentence_rates: Sequence[float] = ()  # for each set, the share of passages that are cut to one sentence; 0 if empty
    pool_rows: int = _POOL_ROWS

    def batches(
        self,
        start: Position = Position(),  # noqa: B008 (it is frozen)
        load: Callable[[Sequence[PoolPlan]], Iterable[Pool]] | None = None,
    ) -> Iterator[StreamBatch]:
        """Yields batches without end, from `start` on. `load` reads the pools in order (by default, one ahead).

        Raises `UserError` if no text has a word.
        """
        for epoch in count(start.epoch):
            plans = self.plans(epoch)[start.pool if epoch == start.epoch else 0 :]
            found = start != Position(epoch)  # an interrupted epoch may have no batch left
            for plan, pool in zip(plans, (load or self.load_ahead)(plans), strict=True):
                lengths = [example.tokens + PROMPT_ROOM for example in pool]
                rng = np.random.default_rng((self.seed, 1, epoch, plan.number))
                batches = list(plan_epoch(lengths, self.batch_tokens, self.batch_texts, rng))
                resumed = (epoch, plan.number) == (start.epoch, start.pool)
                for number, chosen in enumerate(batches):
                    if chosen and not (resumed and number < start.batch):
                        found = True
                        yield StreamBatch(
                            tuple(pool[i] for i in chosen),
                            Position(epoch, plan.number, number + 1),
                        )
            if not found:
                raise UserError(f"The data sets {', '.join(s.name for s in self.sets)} have no text with words.")

    def plans(self, epoch: int) -> list[PoolPlan]:
        """Returns the pools of an epoch: row groups of all sets in random order.

        A set with weight 2.3 is read twice, and a third time with 0.3 of its rows.
        """
        pieces = [
            (number, group, min(1.0, weight - time))
            for number, (prepared, weight) in enumerate(zip(self.sets, self.weights, strict=True))
            for time in range(int(np.ceil(weight)))
            for group in range(len(prepared.groups))
        ]
        plans: list[PoolPlan] = []
        pool: list[tuple[int, int, float]] = []
        rows = 0.0
        for i in np.random.default_rng((self.seed, 0, epoch)).permutation(len(pieces)).tolist():
            number, group, share = pieces[i]
            pool.append(pieces[i])
            rows += share * self.sets[number].groups[group][2]
            if rows >= self.pool_rows:
                plans.append(PoolPlan(epoch, len(plans), tuple(pool)))
                pool, rows = [], 0.0
        return [*plans, PoolPlan(epoch, len(plans), tuple(pool))] if pool else plans

    def load(self, plan: PoolPlan) -> Pool:
        """Reads and tokenizes a pool. Raises `UserError` for a file that cannot be read."""
        examples: Pool = []
        with ExitStack() as opened:
            places = {self.sets[number].place.path: self.sets[number].place for number, *_ in plan.pieces}
            files = {path: opened.enter_context(_Files(place)) for path, place in sorted(places.items())}
            for piece, (number, group, share) in enumerate(plan.pieces):
                prepared = self.sets[number]
                held_out = prepared.held_out(self.held_out, self.seed)
                file, index, size = prepared.groups[group]
                first = sum(rows for *_, rows in prepared.groups[:group])
                kept = np.ones(size, dtype=bool)
                if share < 1:
                    kept = np.random.default_rng((self.seed, 4, plan.epoch, number, group)).random(size) < share
                rate = self.sentence_rates[number] if self.sentence_rates else 0.0
                rng = np.random.default_rng((self.seed, 5, plan.epoch, plan.number, piece))
                rows = examples_of(files[prepared.place.path].row_group(file, index))
                chosen: list[Example] = []
                names: list[str] = []
                for row, (example, keep) in enumerate(zip(rows, kept, strict=True), first):
                    if keep and row not in held_out:
                        parts = sentences_of(example) if rng.random() < rate else [example]
                        chosen.append(without_types(parts[int(rng.integers(len(parts)))], self.ignored_types))
                        names.append(f"{prepared.name}, row {row + 1}")
                examples += tokenize(chosen, self.tokenizer, self.config, source=number, where=names)
        return examples

    def load_ahead(self, plans: Sequence[PoolPlan]) -> Iterator[Pool]:
        """Yields pools, and reads the next pool while the last one is in use."""
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self.load, plan) for plan in plans[:1]]
            for plan in [*plans[1:], None][: len(plans)]:
                pool = ahead.pop().result()
                ahead += [reader.submit(self.load, plan)] if plan else []
                yield pool


def without_types(example: Example, ignored: frozenset[str]) -> Example:
    """Returns the example without these types. A mention with other types keeps those."""
    if not ignored:
        return example
    kept = [(mention, [label for label in mention.types if label not in ignored]) for mention in example.mentions]
    return Example(
        example.text,
        tuple(mention_of(mention.start, mention.end, types) for mention, types in kept if types),
        tuple(label for label in example.negatives if label not in ignored),
        tuple(label for label in example.elsewhere if label not in ignored),
    )


class _Files:
    """The Parquet files of a directory. Each is opened once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._open: dict[str, pq.ParquetFile] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def row_group(self, file: str, index: int) -> pa.Table:
        try:
            if file not in self._open:
                self._open[file] = pq.ParquetFile(self._place.child(file), filesystem=self._place.filesystem)
            return self._open[file].read_row_group(index)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._place.inside(file).uri} cannot be read ({one_line(error)}).") from error
