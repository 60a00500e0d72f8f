"""Mentions given as strings, found in their text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanlake.data.mentions import find_mentions
from spanlake.text import word_offsets


def found(text: str, *wanted: tuple[str, str]) -> list[tuple[str, str]]:
    return [(text[m.start : m.end], m.label) for m in find_mentions(text, wanted)[0]]


@pytest.mark.parametrize(
    ("text", "string", "places"),
    [
        ("Rome, Rome and Romeo", "Rome", [0, 6]),  # every place, but none within a word
        ("The us saw US troops", "US", [11]),  # its own case first
        ("The us saw troops", "US", [4]),  # any case otherwise
        ("STRASSE und Straße", "straße", [12]),
        ("New\n  York is New York", "New York", [0, 14]),  # whitespace may differ
        ("Alzheimer's disease", "Alzheimer", [0]),  # an apostrophe is a word of its own
        ("a (b+c) d", "(b+c)", [2]),  # what is special in a pattern is not here
        ("東京 と 京都", "東京", [0]),
        ("x\u200by, x", "x", [0, 5]),
    ],
)
def test_a_string_is_found_wherever_it_stands(text: str, string: str, places: list[int]) -> None:
    mentions, dropped = find_mentions(text, [("t", string)])
    assert [mention.start for mention in mentions] == places
    assert not dropped


@pytest.mark.parametrize(
    ("text", "wanted", "dropped"),
    [
        ("Paris", [("city", "Oslo")], {"not_found": 1}),
        ("Parisian", [("city", "Paris")], {"inside_a_word": 1}),
        ("COVID-19", [("disease", "covid")], {"inside_a_word": 1}),
        ("Paris", [("city", " "), ("city", "")], {"empty": 2}),
        ("New York Times", [("paper", "New York Times"), ("city", "New York")], {"overlapping": 1}),
        ("a b c", [("x", "a b"), ("y", "b c")], {"overlapping": 1}),  # as long as each other: the first stays
    ],
)
def test_what_is_dropped_is_counted_by_reason(text: str, wanted: list[tuple[str, str]], dropped: dict) -> None:
    assert find_mentions(text, wanted)[1] == dropped


def test_a_string_within_a_longer_mention_still_counts_elsewhere() -> None:
    text = "The New York Times of New York"
    assert found(text, ("city", "New York"), ("paper", "New York Times")) == [
        ("New York Times", "paper"),
        ("New York", "city"),
    ]


def test_one_place_may_mention_several_labels() -> None:
    assert found("Paris", ("city", "Paris"), ("capital", "Paris"), ("city", "Paris")) == [
        ("Paris", "capital"),
        ("Paris", "city"),
    ]


texts = st.text(st.sampled_from("aAbB .-'_éß\n中1"), max_size=40)


@given(
    texts, st.lists(st.tuples(st.sampled_from("xy"), st.text(st.sampled_from("aAbB .-é中"), max_size=5)), max_size=5)
)
def test_mentions_are_whole_words_apart_and_as_asked(text: str, wanted: list[tuple[str, str]]) -> None:
    mentions, dropped = find_mentions(text, wanted)
    offsets = word_offsets(text)
    starts, ends = {*offsets[:, 0].tolist()}, {*offsets[:, 1].tolist()}
    asked = {(label, " ".join(string.split()).lower()) for label, string in wanted}
    for mention in mentions:
        assert mention.start in starts and mention.end in ends
        assert (mention.label, " ".join(text[mention.start : mention.end].split()).lower()) in asked
    places = sorted({(mention.start, mention.end) for mention in mentions})
    assert all(before[1] <= after[0] for before, after in zip(places, places[1:], strict=False))
    # Every string is either found, or dropped for a reason.
    lost = dropped["empty"] + dropped["not_found"] + dropped["inside_a_word"]
    assert lost + len({m.label for m in mentions}) + dropped["overlapping"] >= len({label for label, _ in wanted})


@given(st.lists(st.sampled_from(["ada", "Rome", "new", "York", "x1", "-", "é"]), min_size=1, max_size=12), st.data())
def test_every_run_of_whole_words_is_found_everywhere(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    string = " ".join(words[first : last + 1])
    mentions, dropped = find_mentions(text, [("t", string)])
    plain = [match.start() for match in re.finditer(rf"(?<!\S){re.escape(string)}(?!\S)", text)]
    assert [mention.start for mention in mentions] == plain and not dropped
