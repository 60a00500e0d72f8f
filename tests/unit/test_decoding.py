import random
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanlake.decoding import Entity, join_adjacent, select

Candidate = tuple[int, int, int, float]  # start, end (inclusive), label, score


def conflict(one: Candidate, other: Candidate, nested: bool, multi_label: bool) -> bool:
    if one[:3] == other[:3]:
        return True
    if one[:2] == other[:2]:
        return not multi_label
    if one[1] < other[0] or other[1] < one[0]:
        return False
    contained = (one[0] <= other[0] and other[1] <= one[1]) or (other[0] <= one[0] and one[1] <= other[1])
    return not (nested and contained)


def reference(candidates: list[Candidate], nested: bool, multi_label: bool) -> list[Candidate]:
    accepted: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c[3], c[0], c[1] - c[0], c[2])):
        if not any(conflict(candidate, other, nested, multi_label) for other in accepted):
            accepted.append(candidate)
    return sorted(accepted, key=lambda c: (c[0], c[1], -c[3], c[2]))


def chosen(candidates: list[Candidate], nested: bool, multi_label: bool) -> list[Candidate]:
    start, end, label = (np.array([c[field] for c in candidates], dtype=np.int64) for field in range(3))
    score = np.array([c[3] for c in candidates])
    picks = select(start, end, label, score, nested=nested, multi_label=multi_label)
    assert picks.dtype == np.int64
    return [candidates[pick] for pick in picks]


@st.composite
def candidates_(draw: st.DrawFn) -> list[Candidate]:
    words = draw(st.integers(1, 30))
    width = draw(st.integers(1, words))
    scale = draw(st.sampled_from([1, 1_000_003]))  # positions far apart must not change anything
    scores = st.sampled_from([0.5, 0.75, 0.9]) if draw(st.booleans()) else st.floats(0, 1, width=32)
    one = st.tuples(st.integers(0, words), st.integers(0, width - 1), st.integers(0, 3), scores)
    return [(s * scale, (s + w) * scale, label, score) for s, w, label, score in draw(st.lists(one, max_size=40))]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(candidates_(), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_select_follows_the_rules_in_any_input_order(
    candidates: list[Candidate], nested: bool, multi_label: bool, dice: random.Random
) -> None:
    expected = reference(candidates, nested, multi_label)
    assert chosen(candidates, nested, multi_label) == expected
    shuffled = dice.sample(candidates, len(candidates))
    assert chosen(shuffled, nested, multi_label) == expected


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(candidates_(), st.booleans(), st.booleans(), st.floats(0, 1, width=32))
def test_a_higher_threshold_only_removes_entities(
    candidates: list[Candidate], nested: bool, multi_label: bool, threshold: float
) -> None:
    """The page relies on this: it asks once at a low threshold, and filters the answer."""
    afterwards = [one for one in chosen(candidates, nested, multi_label) if one[3] > threshold]
    before = [one for one in candidates if one[3] > threshold]
    assert afterwards == chosen(before, nested, multi_label)


def test_conflicts_by_kind() -> None:
    outer, inner, crossing, second = (0, 3, 0, 0.9), (1, 2, 0, 0.8), (3, 5, 0, 0.7), (0, 3, 1, 0.6)
    everything = [crossing, second, inner, outer]
    assert chosen(everything, nested=False, multi_label=False) == [outer]
    assert chosen(everything, nested=True, multi_label=False) == [outer, inner]
    assert chosen(everything, nested=False, multi_label=True) == [outer, second]
    assert chosen(everything, nested=True, multi_label=True) == [outer, second, inner]
    assert chosen([outer, outer], nested=True, multi_label=True) == [outer]


def test_a_refused_candidate_conflicts_with_nothing() -> None:
    chain = [(0, 2, 0, 0.9), (2, 4, 0, 0.8), (4, 6, 0, 0.7)]
    for nested in (False, True):
        assert chosen(chain, nested=nested, multi_label=False) == [chain[0], chain[2]]


@pytest.mark.parametrize("width", [12, 100_000])
@pytest.mark.parametrize("nested", [False, True])
def test_the_accepted_among_many_candidates_never_conflict(width: int, nested: bool) -> None:
    rng = np.random.default_rng(0)
    count = 200_000
    start = rng.integers(0, 3_000_000, count)
    end = start + rng.integers(0, width, count)
    label = rng.integers(0, 5, count)
    score = rng.random(count, dtype=np.float32)
    picks = select(start, end, label, score, nested=nested, multi_label=False)
    spans = list(zip(start[picks].tolist(), end[picks].tolist(), strict=True))
    assert int(np.argmax(score)) in picks
    assert len(set(spans)) == len(spans) > 100
    if not nested:
        assert all(left[1] < right[0] for left, right in pairwise(spans))
        return
    # Outer spans come first at each start, so the stack of open spans holds every span that the next one could cross.
    still_open: list[int] = []
    for begin, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        while still_open and still_open[-1] < begin:
            still_open.pop()
        assert not still_open or stop <= still_open[-1]
        still_open.append(stop)


def test_no_candidates_give_no_entities() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert select(none, none, none, none.astype(np.float32), nested=True, multi_label=True).tolist() == []


def test_wrong_arrays_are_refused() -> None:
    one, two = np.array([1]), np.array([0, 2])
    with pytest.raises(ValueError, match="differ in length"):
        select(one, one, two, one, nested=False, multi_label=False)
    with pytest.raises(ValueError, match="before it starts"):
        select(one, one - 1, one, one, nested=False, multi_label=False)


@pytest.mark.parametrize("nested", [False, True])
def test_a_long_chain_is_chosen_from_its_best_end_on(nested: bool) -> None:
    chain = [(2 * i, 2 * i + 2, 0, 1 - i / 1000) for i in range(500)]
    assert chosen(chain, nested=nested, multi_label=False) == chain[::2]


@given(candidates_(), st.booleans())
def test_nested_selection_refuses_only_what_conflicts(candidates: list[Candidate], multi_label: bool) -> None:
    kept = chosen(candidates, nested=True, multi_label=multi_label)
    assert not any(conflict(one, other, True, multi_label) for one, other in combinations(kept, 2))
    for candidate in candidates:  # every candidate that was left out conflicts with one that was kept
        assert candidate in kept or any(conflict(candidate, other, True, multi_label) for other in kept)


def test_adjacent_entities_of_one_label_are_joined() -> None:
    text = "Ministry of Agriculture and  Rural Affairs, Rome"
    pieces = [
        (0, 23, "org", 0.9),
        (24, 27, "org", 0.6),
        (29, 34, "org", 0.8),
        (35, 42, "place", 0.7),
        (44, 48, "place", 0.5),
    ]
    entities = [Entity(start, end, text[start:end], label, score) for start, end, label, score in pieces]
    joined = join_adjacent(text, entities)
    assert [(entity.text, entity.label, entity.score) for entity in joined] == [
        ("Ministry of Agriculture and  Rural", "org", 0.6),
        ("Affairs", "place", 0.7),
        ("Rome", "place", 0.5),
    ]
    assert all(text[entity.start : entity.end] == entity.text for entity in joined)


def test_parts_of_different_sources_are_not_joined() -> None:
    entities = [Entity(0, 3, "Ada", "person", 1.0, "rule"), Entity(4, 12, "Lovelace", "person", 0.9, "model")]
    assert join_adjacent("Ada Lovelace", entities) == entities
