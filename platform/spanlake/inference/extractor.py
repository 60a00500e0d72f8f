"""Finds entities in texts. The Python API, bulk extraction and serving share this code."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from spanlake.ahead import read_ahead
from spanlake.calibration import Calibration
from spanlake.decoding import Entity
from spanlake.errors import PackageError, UserError, shown
from spanlake.inference.accelerator import AcceleratorScorer
from spanlake.inference.candidates import NONE, Candidates, choose, join
from spanlake.inference.hardware import choose_device, choose_precision
from spanlake.inference.planning import LabelGroup, Row, group_labels, plan_batches, plan_rows
from spanlake.inference.scoring import Pass, Scorer
from spanlake.inference.settings import Settings, settings_of_each
from spanlake.labels import Labels, Threshold
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.cutting import CutText, cut_texts
from spanlake.modeling.tokens import ModelTokenizer
from spanlake.package import Package, absolute_name, open_package

if TYPE_CHECKING:
    from spanlake.rules import Rules

# Padded sub-words in one forward pass.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Texts planned together: enough rows to sort by length, and few enough to fit in memory.
_CHUNK_CHARACTERS = 400_000
_CHUNK_TEXTS = 4096
_STEPS_AHEAD = 4  # batches to lay out while the model works on one
_CACHED_LABEL_SETS = 256

_T = TypeVar("_T")


@dataclass(frozen=True)
class Origin:
    """How another process loads the same model: the arguments of `Extractor.load`, and the model's fingerprint."""

    model: str
    device: str
    precision: str
    batch_tokens: int | None
    threads: int | None
    fingerprint: str


@dataclass(frozen=True)
class _Begun:
    """A forward pass that runs or waits to run."""

    tokens: int  # sub-words of its rows
    scores: Future[Candidates]


@dataclass(frozen=True)
class _Scored:
    """Follows the last pass over these texts, so that their entities can be chosen."""

    texts: list[tuple[CutText, Settings]]


class Extractor:
    """Finds entities with one model on one device. Threads may share it.

    Up to `lanes` forward passes run side by side. `close`, or the end of a `with` block, releases the model.

    A process that is forked afterwards can use the Extractor on a CPU; on an accelerator, it gets a `UserError`. An
    Extractor of `load` can be pickled: the pickle holds the arguments of `load`, and each process that reads it loads
    the model once.
    """

    def __init__(
        self,
        package: Package,
        device: torch.device,
        precision: torch.dtype,
        batch_tokens: int | None = None,
        threads: int | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Takes over the package's model and moves it, without a copy, to the device and the precision.

        On a CPU, `threads` passes run side by side; the default is torch's number of threads. `origin` says how to load
        the model in another process; without it, the Extractor cannot be pickled.
        """
        self.device = device
        self.precision = precision
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[device.type]
        self.lanes = (threads or torch.get_num_threads()) if device.type == "cpu" else 1
        self._package: Package | None = package
        self._origin = origin
        self.scorer = (
            Scorer(package, device, precision, self.lanes)
            if device.type == "cpu"
            else AcceleratorScorer(package, device, precision)
        )
        group = partial(_group, calibration=package.calibration, tokenizer=package.tokenizer, config=package.config)
        self._groups = lru_cache(maxsize=_CACHED_LABEL_SETS)(group)

    @classmethod
    def load(
        cls,
        model: str = "mini",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> Extractor:
        """Loads a model.

        `model` is `mini`, a directory or URI of a package, a published GLiNER directory, or a Hub id of either.
        `device` is auto, cpu, cuda or cuda:N. `precision` is auto, float32, bfloat16 or float16. `batch_tokens` bounds
        the padded sub-words of one forward pass. `threads` is the number of CPU cores to use; the default is torch's.

        Raises `PackageError` for a model that cannot be read, and `UserError` for another wrong argument.
        """
        for name, number in (("batch_tokens", batch_tokens), ("threads", threads)):
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}; it must be at least 1.")
        where = choose_device(device)
        dtype = choose_precision(precision, where)
        package = open_package(model)
        origin = Origin(absolute_name(model), device, precision, batch_tokens, threads, package.fingerprint)
        return cls(package, where, dtype, batch_tokens, threads, origin)

    def __reduce__(self) -> tuple[Callable[[Origin], Extractor], tuple[Origin]]:
        if self._package is None or self._origin is None:
            problem = "is closed" if self._package is None else "was not made by Extractor.load"
            raise UserError(f"The Extractor {problem}, so other processes cannot load its model; use Extractor.load.")
        return _restored, (self._origin,)

    @property
    def package(self) -> Package:
        """Returns the model's package. Raises `UserError` if the Extractor is closed."""
        if self._package is None:
            raise UserError("The Extractor is closed; load the model again.")
        return self._package

    def close(self) -> None:
        """Waits for the running passes, then releases the model.

        This frees the model's memory, unless other code still holds the package.
        """
        self.scorer.close()
        self._package = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def extract(
        self,
        texts: Sequence[str],
        labels: Labels | Sequence[Labels],
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        rules: Rules | None = None,
        join_adjacent: bool = False,
    ) -> list[list[Entity]]:
        """Returns the entities of each text, in the order of the texts.

        `labels` is a list of names or a mapping of names to descriptions, for all texts; or a list of these, one for
        each text. `threshold` is one number, or one per label; None means the model's own, or 0.5 where it has none. If
        texts have labels of their own, a mapping holds the threshold of each label of any text.
        `nested` allows entities within entities, and `multi_label` allows several labels for one span. `rules` find
        entities beside the model; each entity then says its `source`. `join_adjacent` makes one entity of those of one
        label that follow each other with at most whitespace between them: such as the parts of an entity that is wider
        than the model's widest span.

        Raises `UserError` for texts that are not a list of strings, and for labels and thresholds as `Settings.make`
        does.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise UserError(f"The texts are {shown(texts)}; give a list of strings.")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"Text {index} is {shown(text)}; every text must be a string.")
        if _one_for_all(labels):
            settings = [Settings.make(cast(Labels, labels), threshold, nested, multi_label, rules)] * len(texts)
        else:
            if len(labels) != len(texts):
                raise UserError(
                    f"There are {len(labels)} label lists for {len(texts)} texts; give one, or one per text."
                )
            settings = settings_of_each(cast(Sequence[Labels], labels), threshold, nested, multi_label, rules)
        settings = [each.joining(join_adjacent) for each in settings]
        return list(self.stream(zip(texts, settings, strict=True)))

    def stream(
        self, requests: Iterable[tuple[str, Settings]], on_pass: Callable[[int], None] | None = None
    ) -> Iterator[list[Entity]]:
        """Yields the entities of each text in turn. The number of requests read ahead is bounded.

        Another thread reads the requests and cuts them into sub-words while the model works. After each forward pass,
        `on_pass` receives the number of sub-words that the pass has read, including those of labels.

        Raises `UserError` for a label that the model cannot read, and in a fork of the process that began the stream.
        """
        found: list[Candidates] = []
        process = os.getpid()
        for step in self._run_ahead(read_ahead(self._plan(requests), _STEPS_AHEAD + self.lanes, "spanlake-plan")):
            if isinstance(step, _Begun):
                found.append(step.scores.result())
                if on_pass:
                    on_pass(step.tokens)
            else:
                for entities in choose(step.texts, join([NONE, *found])):
                    yield entities
                    if os.getpid() != process:
                        raise UserError("The stream began before this process was forked; begin another one here.")
                found = []

    def _run_ahead(self, steps: Iterator[Pass | _Scored]) -> Iterator[_Begun | _Scored]:
        """Yields the steps in turn, and begins their passes early enough to keep every lane at work."""
        ahead: deque[_Begun | _Scored] = deque()
        try:
            for step in steps:
                if isinstance(step, Pass):
                    ahead.append(_Begun(step.tokens, self.scorer.submit(step)))
                else:
                    ahead.append(step)
                if len(ahead) > self.lanes + 1:
                    yield ahead.popleft()
            yield from ahead
        finally:
            for left in ahead:
                if isinstance(left, _Begun):
                    left.scores.cancel()

    def _plan(self, requests: Iterable[tuple[str, Settings]]) -> Iterator[Pass | _Scored]:
        for chunk in _chunked(requests):
            cuts = cut_texts([text for text, _ in chunk], self.package.tokenizer)
            texts = [(cut, settings) for cut, (_, settings) in zip(cuts, chunk, strict=True)]
            rows = [row for index, text in enumerate(texts) for row in self._rows(index, *text)]
            a_lane = sum(row.tokens for row in rows) // self.lanes  # so that few rows, too, occupy all lanes
            for batch in plan_batches(rows, min(self.batch_tokens, max(1, a_lane))):
                yield self.scorer.prepare(batch)
            yield _Scored(texts)

    def plan(self, texts: Sequence[tuple[int, str, Settings]]) -> list[tuple[CutText, list[Row]]]:
        """Returns each text cut into words, and the rows that score it, marked with the index that comes with the text.

        A text without words has no rows. Use this to form passes yourself: the `scorer` prepares and runs rows of any
        texts together, and `choose` returns the entities of a text once all its rows are scored.

        Raises `UserError` for a label that the model cannot read.
        """
        cuts = cut_texts([text for _, text, _ in texts], self.package.tokenizer)
        return [
            (cut, list(self._rows(index, cut, settings))) for cut, (index, _, settings) in zip(cuts, texts, strict=True)
        ]

    def _rows(self, index: int, cut: CutText, settings: Settings) -> Iterator[Row]:
        return plan_rows(index, cut, self._groups(settings), self.package.tokenizer, self.package.config)

    def prompt_size(self, settings: Settings) -> tuple[int, int]:
        """Returns how many prompts the labels need, and their sub-words in total. Raises `UserError` as `plan` does."""
        groups = self._groups(settings)
        return len(groups), sum(len(group.prompt.ids) for group in groups)


_restored_here: dict[Origin, Extractor] = {}  # by this process, so that each task of a pool does not load the model
_restoring = Lock()


def _restored(origin: Origin) -> Extractor:
    """Returns the Extractor of a pickle. Raises `PackageError` if the model has changed since it was pickled."""
    with _restoring:
        known = _restored_here.get(origin)
        if known is None or known._package is None:
            # A fork's first thread must not compute on several cores: OpenMP would wait for threads of the parent.
            with ThreadPoolExecutor(1, thread_name_prefix="spanlake-load") as loader:
                known = loader.submit(_load_again, origin).result()
            _restored_here[origin] = known
        return known


def _load_again(origin: Origin) -> Extractor:
    loaded = Extractor.load(
        origin.model,
        device=origin.device,
        precision=origin.precision,
        batch_tokens=origin.batch_tokens,
        threads=origin.threads,
    )
    if loaded.package.fingerprint != origin.fingerprint:
        raise PackageError(
            f"The model {origin.model} has changed since the Extractor was pickled (fingerprint "
            f"{loaded.package.fingerprint[:12]}…, not {origin.fingerprint[:12]}…); load it and pickle it again."
        )
    return loaded


def _group(
    settings: Settings, calibration: Calibration | None, tokenizer: ModelTokenizer, config: ModelConfig
) -> list[LabelGroup]:
    return group_labels(settings.calibrated(calibration), tokenizer, config)


def _one_for_all(labels: Labels | Sequence[Labels]) -> bool:
    """Returns whether the labels apply to every text; True for invalid labels too, which `Settings.make` refuses."""
    if isinstance(labels, (Mapping, str)) or not isinstance(labels, Sequence):
        return True
    return not any(isinstance(each, (Mapping, Sequence)) and not isinstance(each, str) for each in labels)


def _chunked(requests: Iterable[tuple[str, Settings]]) -> Iterator[list[tuple[str, Settings]]]:
    chunk: list[tuple[str, Settings]] = []
    characters = 0
    for request in requests:
        chunk.append(request)
        characters += len(request[0])
        if characters >= _CHUNK_CHARACTERS or len(chunk) == _CHUNK_TEXTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
