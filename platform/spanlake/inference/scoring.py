"""Runs forward passes, which turn rows into candidates.

Shapes: B rows of a batch, W words, K span width, C labels of a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Lock

import numpy as np
import torch

from spanlake.errors import UserError
from spanlake.inference.candidates import Candidates, join
from spanlake.inference.planning import Row
from spanlake.inference.reading import make_reader
from spanlake.inference.token_spans import token_candidates
from spanlake.modeling.found import Wanted
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import Batch
from spanlake.package import Package

_NEAR = 1e-6  # more than the rounding of a score


@dataclass(frozen=True)
class Pass:
    """The rows of one forward pass, laid out for the model."""

    rows: list[Row]
    batch: Batch

    @property
    def tokens(self) -> int:
        """Returns the sub-words of the rows, including those of labels."""
        return sum(row.tokens for row in self.rows)

    @property
    def padded_tokens(self) -> int:
        """Returns the sub-words that the model computes, padding included."""
        return len(self.rows) * max(row.tokens for row in self.rows)


class Scorer:
    """Runs the passes of one model on a CPU. Threads may share it.

    `lanes` passes run side by side, each on one core. If several cores shared a pass, each would wait for the slowest
    core after every operation.
    """

    def __init__(self, package: Package, device: torch.device, precision: torch.dtype, lanes: int) -> None:
        """Takes over the package's model and moves it, without a copy, to the device and the precision."""
        package.model.move(device, precision)
        self._model: SpanModel | None = package.model.eval()
        self._precision = precision
        self._reader = make_reader(package, device)
        self._calibration = package.calibration
        self._token_level = package.config.token_level
        self._lane_count = lanes
        self._lanes = _start_lanes(lanes)
        self._process = os.getpid()  # which has the threads of the lanes
        self._starting = Lock()

    def prepare(self, rows: list[Row]) -> Pass:
        """Lays out the rows of one pass."""
        return Pass(rows, self._reader.lay_out(rows))

    def submit(self, work: Pass) -> Future[Candidates]:
        """Runs a pass as soon as a lane is free. Raises `UserError` if the scorer is closed."""
        if os.getpid() != self._process:
            self._restart_lanes()
        try:
            return self._lanes.submit(self._score, work)
        except RuntimeError as error:
            raise closed() from error

    def _restart_lanes(self) -> None:
        """Starts the lanes in a process that was forked: it has a copy of the model, but none of the threads."""
        with self._starting:
            if os.getpid() != self._process and self._model is not None:
                self._lanes = _start_lanes(self._lane_count)
                self._process = os.getpid()

    def close(self) -> None:
        """Waits for the submitted passes, then releases the model."""
        self._lanes.shutdown()
        self._model = None

    def _score(self, work: Pass) -> Candidates:
        return self._forward(work.rows, work.batch)

    @torch.inference_mode()
    def _forward(self, rows: list[Row], batch: Batch) -> Candidates:
        assert self._model is not None  # `close` waits for the passes
        parts = self._reader.logits(self._model, rows, batch)
        return join([self._candidates(of_part, logits) for of_part, logits in parts])

    def _candidates(self, rows: list[Row], logits: torch.Tensor) -> Candidates:
        """Returns the spans of the rows that score above their thresholds. logits: [B, W, K, C], on the CPU."""
        if self._precision == torch.float16 and not logits.sum().isfinite():
            raise overflow()
        if self._token_level:
            return token_candidates(rows, logits, self._calibration)
        if self._calibration:
            logits = logits.float() * self._calibration.scale + self._calibration.shift
        _, words, width, types = logits.shape
        wanted = wanted_of(rows, types)
        limit, real = wanted.limits, wanted.spans(words, width)
        # Few spans exceed their threshold. Only the scores of those that come near it are computed.
        least = torch.logit((limit.double() - _NEAR).clamp(0, 1)).float().repeat(1, width)
        near = (logits.flatten(2) > least.unsqueeze(1)).logical_and_(real.repeat_interleave(types, 2))
        at = torch.from_numpy(np.flatnonzero(near.numpy()))  # where few values are true, several times as fast as torch
        scores = torch.sigmoid(logits.flatten()[at])
        kept = scores > limit[at // (words * width * types), at % types]
        return candidates_at(rows, at[kept].numpy(), scores[kept].numpy(), tuple(logits.shape))


def wanted_of(rows: Sequence[Row], types: int) -> Wanted:
    """Returns which spans of the rows may be candidates, on the CPU. types: C, padding included."""
    limits = np.ones((len(rows), types), dtype=np.float32)  # padding gets 1, which no score exceeds
    for i, row in enumerate(rows):
        limits[i, : row.group.count] = row.group.thresholds
    own = np.array([(row.first, row.own_from, row.own_to, len(row.words)) for row in rows], dtype=np.int64)
    return Wanted(torch.from_numpy(own), torch.from_numpy(limits))


def candidates_at(rows: Sequence[Row], places: np.ndarray, scores: np.ndarray, shape: tuple[int, ...]) -> Candidates:
    """Returns spans of the rows as candidates.

    places: [n], in [B, W, K, C]; scores: [n]; shape: B, W, K and C.
    """
    row_of, start, extra, column_of = np.unravel_index(places, shape)
    start += np.array([row.first for row in rows])[row_of]
    return Candidates(
        text=np.array([row.text_index for row in rows])[row_of],
        start=start,
        end=start + extra,
        label=column_of + np.array([row.group.first for row in rows])[row_of],
        score=scores,
    )


def closed() -> UserError:
    return UserError("The Extractor is closed; load the model again.")


def overflow() -> UserError:
    return UserError("The numbers of the model exceed what float16 holds; load it with precision float32 or bfloat16.")


def _start_lanes(count: int) -> ThreadPoolExecutor:
    """Returns a pool of threads that each compute on one core."""
    before = torch.get_num_threads()
    lanes = ThreadPoolExecutor(count, "spanlake-pass", initializer=_stay_on_one_core)
    started = Barrier(count + 1)
    for _ in range(count):
        lanes.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)  # else threads that begin later would also compute on one core
    return lanes


def _stay_on_one_core() -> None:
    torch.get_num_threads()  # a thread's first call reads the process's number, and would undo a number set before it
    torch.set_num_threads(1)
