"""Candidates of token-level models: spans whose words all score as inside, and whose ends score as start and end.

Shapes: B rows of a batch, W words, C labels of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spanlake.calibration import Calibration
from spanlake.inference.candidates import Candidates
from spanlake.inference.planning import Row


def token_candidates(rows: Sequence[Row], logits: torch.Tensor, calibration: Calibration | None) -> Candidates:
    """Returns the spans of a pass that belong to its rows, of any width.

    logits: [B, W, 3, C], of start, end and inside.

    The score of a span is the least of the start of its first word, the end of its last word and the inside of all its
    words. Start and end must exceed the label's threshold, and inside must reach it.
    """
    logits = logits.float()
    if calibration:
        logits = logits * calibration.scale + calibration.shift
    scores = torch.sigmoid(logits).permute(2, 0, 3, 1).cpu().numpy()  # [3, B, C, W]
    _, batch, types, words = scores.shape
    limit = np.full((batch, types, 1), np.inf, dtype=np.float32)  # padding exceeds no limit
    counts = np.array([len(row.words) for row in rows])
    for i, row in enumerate(rows):
        limit[i, : row.group.count, 0] = row.group.thresholds
    real = np.arange(words) < counts[:, None, None]
    start, end, inside = scores
    within = (inside >= limit) & real
    begins, ends = ((start > limit) & within).reshape(-1), ((end > limit) & within).reshape(-1)
    first, last = _pairs(begins, ends, within.reshape(-1, words))
    edges = np.minimum(start.reshape(-1)[first], end.reshape(-1)[last])
    score = np.minimum(edges, _least(inside.reshape(-1), first, last))
    at, column = np.divmod(first // words, types)
    start_word, end_word = first % words, last % words
    offset, own_from, own_to = np.array([(row.first, row.own_from, row.own_to) for row in rows])[at].T
    centre = 2 * offset + start_word + end_word
    own = (own_from <= centre) & (centre < own_to)
    return Candidates(
        text=np.array([row.text_index for row in rows])[at][own],
        start=(offset + start_word)[own],
        end=(offset + end_word)[own],
        label=(column + np.array([row.group.first for row in rows])[at])[own],
        score=score[own],
    )


def _pairs(begins: np.ndarray, ends: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of the first and the last word of every span that lies in one run of `within`.

    begins, ends: bool [N * W]; within: bool [N, W]. The places count through all N sequences.
    """
    breaks = np.flatnonzero(~np.pad(within, ((0, 0), (0, 1))).reshape(-1))  # each sequence has a break after it
    words = within.shape[1]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends)
    padded = starts + starts // words
    run_stop = breaks[np.searchsorted(breaks, padded)] - starts // words  # the place after the run
    low, high = np.searchsorted(stops, starts), np.searchsorted(stops, run_stop)
    count = np.maximum(high - low, 0)
    first = np.repeat(starts, count)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, stops[np.repeat(low, count) + nth]


def _least(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Returns the least value of each range first..last (inclusive)."""
    if not len(first):
        return np.zeros(0, dtype=values.dtype)
    edges = np.stack((first, last + 1), axis=1).reshape(-1)
    least: np.ndarray = np.minimum.reduceat(np.append(values, np.inf).astype(values.dtype), edges)[::2]
    return least
