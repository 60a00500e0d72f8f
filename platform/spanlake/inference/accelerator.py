"""Runs forward passes on an accelerator. The host does not wait for the device inside a pass.

Shapes: B rows, W words, K span width, C labels, D width of a vector.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import numpy as np
import torch

from spanlake.errors import UserError
from spanlake.inference.candidates import Candidates, join
from spanlake.inference.planning import Row
from spanlake.inference.reading import make_reader
from spanlake.inference.scoring import Pass, Scorer, candidates_at, closed, overflow, wanted_of
from spanlake.modeling.found import Found, Scale, find_spans
from spanlake.modeling.kernels.fallback import WithFallback
from spanlake.modeling.model import SpanModel
from spanlake.modeling.span_head import SpanHead
from spanlake.modeling.tokens import Batch
from spanlake.modeling.transfer import pinned
from spanlake.package import Package

_Read = Callable[[], Candidates]  # waits for the device
_log = logging.getLogger(__name__)


class AcceleratorScorer(Scorer):
    """Runs the passes of one model on one accelerator. Threads may share it.

    One thread begins passes, and another waits for what they found. A pass is begun while the one before it runs. Its
    batch is copied by a stream of its own, from memory that the device reads by itself. The device chooses the spans
    above their thresholds. How many they are is known only afterwards, so they get room that is likely to be enough; if
    it was not, they are found again.
    """

    def __init__(self, package: Package, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(package, device, precision, lanes=1)
        if package.config.encoder["model_type"] == "deberta-v2":
            from spanlake.modeling.deberta import use_lean_attention  # it imports transformers, which takes seconds

            use_lean_attention(package.model.encoder)
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting = ThreadPoolExecutor(1, "spanlake-wait")
        self._room_per_word = 1.0
        # These models do not score by the vectors of words and types alone, which the device finds spans from.
        self._chosen_on_host = package.config.token_level or package.config.counting is not None
        self._scale = Scale(package.calibration.scale, package.calibration.shift) if package.calibration else Scale()
        self._find = WithFallback("The kernel that scores spans", _load_find_spans, find_spans)
        self._cpu_reader = make_reader(package, torch.device("cpu"))
        self._cpu_model: SpanModel | None = None  # made when a row does not fit into the device's memory

    def prepare(self, rows: list[Row]) -> Pass:
        batch = self._reader.lay_out(rows)
        return Pass(rows, batch.mapped(lambda tensor: pinned(tensor, self._device)))

    def submit(self, work: Pass) -> Future[Candidates]:
        """Runs a pass after those before it.

        A pass that does not fit into memory is halved and tried again. A row that does not fit alone is scored on the
        CPU. Raises `UserError` if the scorer is closed, or if the process is a fork.
        """
        if os.getpid() != self._process:
            raise UserError(
                f"The Extractor was loaded on {self._device} before this process was forked, and an accelerator "
                "does not work in a fork; load the model in this process, or start processes by spawn."
            )
        scores: Future[Candidates] = Future()
        try:
            self._lanes.submit(self._run, work, scores)
        except RuntimeError as error:
            raise closed() from error
        return scores

    def close(self) -> None:
        self._lanes.shutdown()
        self._waiting.shutdown()
        self._model = self._cpu_model = None

    def _run(self, work: Pass, scores: Future[Candidates]) -> None:
        """Begins a pass, unless it was cancelled. Another thread waits for it."""
        if not scores.set_running_or_notify_cancel():
            return
        try:
            reads = self._begin(work)
        except Exception as error:
            scores.set_exception(error)
        else:
            self._waiting.submit(self._finish, reads, scores)

    def _finish(self, reads: list[_Read], scores: Future[Candidates]) -> None:
        try:
            with self._on_device(), torch.inference_mode():
                scores.set_result(join([read() for read in reads]))
        except Exception as error:
            scores.set_exception(error)

    def _begin(self, work: Pass) -> list[_Read]:
        """Returns how to read what was begun."""
        try:
            with self._on_device(), torch.inference_mode():
                return self._pass(work.rows, self._moved(work.batch))
        except torch.OutOfMemoryError:
            if len(work.rows) == 1:
                return [partial(self._score_on_cpu, work)]
        middle = len(work.rows) // 2
        halves = [self.prepare(part) for part in (work.rows[:middle], work.rows[middle:])]
        return [read for half in halves for read in self._begin(half)]

    def _pass(self, rows: list[Row], batch: Batch) -> list[_Read]:
        model = self._model
        assert model is not None  # `close` waits for the passes
        if self._chosen_on_host:
            parts = self._reader.logits(model, rows, batch)
            return [partial(self._spans_of_logits, own, *self._to_host(logits)) for own, logits in parts]
        return [self._spans(*part) for part in self._reader.vectors(model, rows, batch)]

    def _spans(self, rows: list[Row], words: torch.Tensor, types: torch.Tensor, room: int | None = None) -> _Read:
        """Finds the spans above their thresholds. words: [B, W, D]; types: [B, C, D]."""
        assert self._model is not None
        head = cast(SpanHead, self._model.spans)
        batch, count, _ = words.shape
        if room is None:
            room = int(self._room_per_word * batch * count)
        wanted = wanted_of(rows, types.shape[1]).to(self._device)
        found = self._find(head, words, types, wanted, self._scale, room)
        shape = (batch, count, head.max_width, types.shape[1])
        again = partial(self._spans, rows, words, types)
        return partial(self._span_candidates, rows, room, shape, again, *self._to_host(found.numbers))

    def _span_candidates(
        self,
        rows: list[Row],
        room: int,
        shape: tuple[int, ...],
        again: Callable[[int], _Read],
        numbers: torch.Tensor,
        whole: torch.cuda.Event | None,
    ) -> Candidates:
        if whole:
            whole.synchronize()
        found = Found(numbers, room)
        count, holds = found.header.tolist()
        if not holds:
            raise overflow()
        if count > room:
            self._room_per_word = max(self._room_per_word, 2 * count / (shape[0] * shape[1]))
            return again(count)()
        places, scores = found.places[:count].numpy(), found.scores[:count].numpy()
        order = np.argsort(places)
        return candidates_at(rows, places[order], scores[order], shape)

    def _spans_of_logits(self, rows: list[Row], logits: torch.Tensor, whole: torch.cuda.Event | None) -> Candidates:
        if whole:
            whole.synchronize()
        return self._candidates(rows, logits)

    def _moved(self, batch: Batch) -> Batch:
        """Returns the batch on the device. It is copied while the device works on the pass before."""
        if self._copies is None:
            return batch.to(self._device)
        now = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            copy = batch.to(self._device)
        now.wait_stream(self._copies)

        def used(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(now)  # else its memory could be given to another batch too early
            return tensor

        return copy.mapped(used)

    def _to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Begins a copy. Returns it, and the event after which it is whole."""
        if self._device.type != "cuda":
            return tensor, None
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
        whole = torch.cuda.Event(blocking=True)
        whole.record()
        return copy, whole

    def _score_on_cpu(self, work: Pass) -> Candidates:
        if self._cpu_model is None:
            _log.warning(
                "A row of %d sub-words does not fit into the memory of %s, so such rows are scored on the CPU.",
                work.tokens,
                self._device,
            )
            assert self._model is not None
            self._cpu_model = type(self._model)(self._model.config).eval()
            self._cpu_model.load_state_dict(self._model.state_dict())
        parts = self._cpu_reader.logits(self._cpu_model, work.rows, work.batch)
        return join([self._candidates(own, logits) for own, logits in parts])

    def _on_device(self) -> AbstractContextManager[object]:
        """Makes the device that of the thread, which kernels and events look at."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _load_find_spans() -> Callable[..., Found]:
    from spanlake.modeling.kernels.span_scores import find_spans as kernel

    return kernel
