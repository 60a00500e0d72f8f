"""Exact-match scores."""

import pytest

from spanlake.evaluation.metrics import Score, Tally


def test_a_mention_counts_where_start_end_and_label_agree():
    tally = Tally()
    gold = [(0, 5, "person"), (10, 15, "city"), (20, 25, "city")]
    tally.add([(0, 5, "person"), (10, 15, "person"), (20, 26, "city"), (30, 35, "dog")], gold)
    assert tally.overall() == Score(correct=1, predicted=4, gold=3)
    assert tally.by_label() == {"city": Score(0, 1, 2), "dog": Score(0, 1, 0), "person": Score(1, 2, 1)}


def test_texts_add_up_and_are_kept_apart():
    tally = Tally()
    tally.add([(0, 5, "person")], [(0, 5, "person")])
    tally.add([(0, 5, "person")], [(1, 5, "person")])
    tally.add([(1, 5, "person")], [])
    assert tally.overall() == Score(correct=1, predicted=3, gold=2)


def test_a_span_given_twice_counts_once():
    tally = Tally()
    tally.add([(0, 5, "a"), (0, 5, "a")], [(0, 5, "a"), (0, 5, "a"), (0, 5, "b")])
    assert tally.overall() == Score(correct=1, predicted=1, gold=2)


def test_precision_recall_and_f1():
    score = Score(correct=3, predicted=4, gold=12)
    assert (score.precision, score.recall) == (0.75, 0.25)
    assert score.f1 == pytest.approx(2 * 0.75 * 0.25 / (0.75 + 0.25))
    assert (Score(0, 0, 5).precision, Score(0, 5, 0).recall, Score(0, 0, 0).f1) == (0, 0, 0)
