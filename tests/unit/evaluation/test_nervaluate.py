"""The scores agree with nervaluate's where both define them: exact match of flat mentions, in all and by label."""

import numpy as np
import pytest

from spanlake.evaluation.metrics import Score, Span, Tally

nervaluate = pytest.importorskip("nervaluate")

LABELS = ("city", "dog", "person")
WORDS = 40


def flat_mentions(rng: np.random.Generator) -> list[Span]:
    """Word spans that do not overlap; ends are exclusive."""
    edges = np.sort(rng.choice(WORDS, 2 * int(rng.integers(1, 6)), replace=False)).tolist()
    return [(start, stop, str(rng.choice(LABELS))) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def disturbed(spans: list[Span], rng: np.random.Generator) -> list[Span]:
    """Some left out, some with another label, some a word shorter."""
    found = []
    for start, stop, label in spans:
        chance = rng.random()
        if chance < 0.2:
            continue
        label = str(rng.choice(LABELS)) if chance < 0.4 else label
        found.append((start, stop - 1 if chance > 0.8 and stop - start > 1 else stop, label))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_precision_recall_and_f1(seed: int):
    rng = np.random.default_rng(seed)
    gold = [flat_mentions(rng) for _ in range(12)]
    found = [disturbed(spans, rng) for spans in gold]
    tally = Tally()
    for predicted, true in zip(found, gold, strict=True):
        tally.add(predicted, true)
    true, pred = (
        [[{"label": label, "start": start, "end": stop - 1} for start, stop, label in spans] for spans in texts]
        for texts in (gold, found)
    )
    theirs = nervaluate.Evaluator(true, pred, tags=list(LABELS), loader="dict").evaluate()
    assert_same(tally.overall(), theirs["overall"]["strict"])
    for label, score in tally.by_label().items():
        assert_same(score, theirs["entities"][label]["strict"])


def assert_same(ours: Score, theirs: "nervaluate.EvaluationResult") -> None:
    assert (ours.correct, ours.predicted, ours.gold) == (theirs.correct, theirs.actual, theirs.possible)
    assert (ours.precision, ours.recall, ours.f1) == pytest.approx((theirs.precision, theirs.recall, theirs.f1))
