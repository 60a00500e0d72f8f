import re
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from spanlake.text import Window, plan_windows, replace_surrogates, sentence_starts, whole_characters, word_offsets

# Any characters that a Python string may hold, the awkward ones more often.
AWKWARD = [*"a_- \t\n\r\v\x00\x1c\x85", "\u200b", "\u200d", "\u0301", "\u05d0", "\u202e", "\u0661", "\U0001f469", "中"]
AWKWARD += [*".!?\"')(。！」「", "\u2028", "\u3000", "\ufeff", "\ud800", "\udfff"]
Document = tuple[list[int], list[bool], dict[str, int]]  # sub-words per word, sentence starts, limits
any_text = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=())), max_size=60)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in word_offsets(text).tolist()]


@settings(deadline=None)  # the first text waits for the table of all code points
@given(any_text)
def test_words_are_the_regex_matches_with_only_whitespace_between(text: str) -> None:
    offsets = word_offsets(text)
    assert offsets.dtype == np.int64 and offsets.shape[1:] == (2,)
    assert words_of(text) == re.findall(r"\w+(?:[-_]\w+)*|\S", text)
    edges = [0, *offsets.reshape(-1).tolist(), len(text)]
    assert all(low <= high for low, high in pairwise(edges))
    assert all(low < high for low, high in offsets.tolist())
    assert all(not text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))


def test_words_keep_hyphens_and_split_punctuation() -> None:
    assert words_of("Jean-Luc's e-mail_2, U.S.A.!") == [
        *["Jean-Luc", "'", "s", "e-mail_2", ",", "U", ".", "S", ".", "A", ".", "!"]
    ]
    assert words_of("-a- 你好。") == ["-", "a", "-", "你好", "。"]
    assert word_offsets(" \n").shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Zoe\u0308 Smith", ["Zoe\u0308", "e\u0308", "Smith"]),
        ("हिन्दी में", ["हि", "न्दी", "में"]),
        ("the 🇫🇷 flag", ["the", "🇫🇷", "flag"]),
        ("naïve café 中文", ["naïve", "café", "中文"]),
    ],
)
def test_edges_inside_a_character_move_out(text: str, words: list[str]) -> None:
    whole = whole_characters(text, word_offsets(text))
    clusters = [cluster.span() for cluster in regex.finditer(r"\X", text)]
    found = [text[start:end] for start, end in whole.tolist()]
    assert {*whole[:, 0].tolist()} <= {start for start, _ in clusters}
    assert {*whole[:, 1].tolist()} <= {end for _, end in clusters}
    assert [*dict.fromkeys(found)] == words


@given(any_text)
def test_edges_of_words_are_those_of_characters_and_never_move_in(text: str) -> None:
    offsets = word_offsets(text)
    whole = whole_characters(text, offsets)
    edges = {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}
    assert {*whole.reshape(-1).tolist()} <= edges
    assert np.all(whole[:, 0] <= offsets[:, 0]) and np.all(whole[:, 1] >= offsets[:, 1])
    inside = (whole != offsets).any()
    assert inside == (not {*offsets.reshape(-1).tolist()} <= edges) or not len(offsets)


@pytest.mark.parametrize("unit", ["Alain Farley works at McGill.\n", ".", "a-", "_", " ", "名前。"])
def test_a_text_of_five_megabytes(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    offsets = word_offsets(text)
    starts = sentence_starts(text, offsets)
    windows = plan_windows(np.ones(len(offsets)), starts, max_words=384, max_tokens=512, overlap=12)
    assert len(starts) == len(offsets)
    assert (windows[-1].stop if windows else 0) == len(offsets)
    if unit.startswith("Alain"):
        assert len(offsets) == 6 * starts.sum() == 6 * (5_000_000 // len(unit))


@given(any_text)
def test_surrogates_are_replaced_one_for_one(text: str) -> None:
    clean = replace_surrogates(text)
    clean.encode("utf-8")
    assert len(clean) == len(text)
    for old, new in zip(text, clean, strict=True):
        assert new == ("\ufffd" if 0xD800 <= ord(old) <= 0xDFFF else old)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two. Three! Four? Five", ["One", "Three", "Four", "Five"]),
        ('He left. "Why?" She knew.', ["He", '"', "She"]),
        ("(It was late.) Then ...", ["(", "Then"]),
        ("What?! No... Yes", ["What", "No", "Yes"]),
        ("Costs 3.14 at a.b.com today", ["Costs"]),
        ("A title\nthen text\r\n\r\n- item", ["A", "then", "-"]),
        ("他来了。她说：「走吧！」然后。好", ["他来了", "她说", "然后", "好"]),
        ("वह आया। ठीक", ["वह", "ठीक"]),
        ("هل جاء؟ نعم", ["هل", "نعم"]),
        (') a." b', [")", "b"]),
        ('" a', ['"']),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    offsets = word_offsets(text)
    marked = sentence_starts(text, offsets)
    # Compare prefixes, because the words of Devanagari are cut at vowel signs.
    assert [text[a : a + len(s)] for (a, _), s in zip(offsets[marked].tolist(), sentences, strict=True)] == sentences


@given(any_text)
def test_sentence_starts_of_any_text(text: str) -> None:
    offsets = word_offsets(text)
    marked = sentence_starts(text, offsets)
    assert marked.dtype == np.bool_ and marked.shape == (len(offsets),)
    assert bool(marked[:1].all())
    for index in range(1, len(offsets)):
        between = text[offsets[index - 1, 1] : offsets[index, 0]]
        if len(f"x{between}x".splitlines()) > 1:
            assert marked[index]


@st.composite
def documents(draw: st.DrawFn) -> Document:
    max_words = draw(st.integers(1, 24))
    limits = {
        "max_words": max_words,
        "max_tokens": draw(st.integers(1, 40)),
        "overlap": draw(st.integers(0, max_words - 1)),
    }
    size = st.one_of(st.integers(0, 3), st.sampled_from([1, 2, 20, 50]))
    lengths = draw(st.lists(size, max_size=90))
    every = draw(st.integers(1, 12))
    marks = draw(st.lists(st.integers(0, every).map(lambda n: n == 0), min_size=len(lengths), max_size=len(lengths)))
    return lengths, marks, limits


def plan(lengths: list[int], marks: list[bool], limits: dict[str, int]) -> list[Window]:
    return plan_windows(np.array(lengths, dtype=np.int64), np.array(marks, dtype=np.bool_), **limits)


@pytest.mark.slow
@settings(max_examples=500)
@given(documents())
def test_windows_respect_their_limits_and_own_every_span_once(document: Document) -> None:
    lengths, marks, limits = document
    clipped = [min(length, limits["max_tokens"]) for length in lengths]
    windows = plan(lengths, marks, limits)
    if not lengths:
        assert windows == []
        return

    assert windows[0].first == windows[0].own_from == 0
    assert windows[-1].stop == len(lengths) and windows[-1].own_to == 2 * len(lengths)
    for window in windows:
        assert 0 < window.stop - window.first <= limits["max_words"]
        assert sum(clipped[window.first : window.stop]) <= limits["max_tokens"]
        assert window.own_from < window.own_to
    for left, right in pairwise(windows):
        assert left.first < right.first <= left.stop < right.stop
        assert left.own_to == right.own_from
        shared = left.stop - right.first
        if shared < limits["overlap"]:  # only where `overlap` words and the next one do not fit
            assert sum(clipped[max(left.stop - limits["overlap"], 0) : left.stop + 1]) > limits["max_tokens"]

    for i in range(len(lengths)):
        for j in range(i, min(i + limits["overlap"], len(lengths))):
            owners = [n for n, window in enumerate(windows) if window.own_from <= i + j < window.own_to]
            assert len(owners) == 1
            if sum(clipped[i : j + 1]) > limits["max_tokens"]:
                continue  # no window can hold it
            owner = windows[owners[0]]
            assert owner.first <= i and j < owner.stop
            # In no neighbour is the span further from the cut edge.
            if owners[0] > 0:
                assert i - owner.first >= windows[owners[0] - 1].stop - 1 - j
            if owners[0] + 1 < len(windows):
                assert owner.stop - 1 - j >= i - windows[owners[0] + 1].first


def test_one_window_if_everything_fits() -> None:
    assert plan([2] * 8, [True] * 8, {"max_words": 8, "max_tokens": 16, "overlap": 3}) == [Window(0, 8, 0, 16)]
    assert len(plan([2] * 8, [True] * 8, {"max_words": 8, "max_tokens": 15, "overlap": 3})) > 1
    assert len(plan([2] * 8, [True] * 8, {"max_words": 7, "max_tokens": 16, "overlap": 3})) > 1


def test_windows_prefer_sentence_ends_and_starts() -> None:
    marks = [word % 18 == 0 for word in range(1000)]
    windows = plan([1] * 1000, marks, {"max_words": 100, "max_tokens": 400, "overlap": 12})
    assert all(left.stop % 18 == 0 and right.first % 18 == 0 for left, right in pairwise(windows))
    assert windows[0] == Window(0, 90, 0, 162) and windows[1].first == 72


def test_far_sentence_ends_are_ignored() -> None:
    plain = plan([1] * 1000, [word == 0 for word in range(1000)], {"max_words": 100, "max_tokens": 400, "overlap": 12})
    assert plain[:2] == [Window(0, 100, 0, 188), Window(88, 188, 188, 364)]
    near = [word in (0, 75) for word in range(1000)]
    assert plan([1] * 1000, near, {"max_words": 100, "max_tokens": 400, "overlap": 12})[0].stop == 75
    far = [word in (0, 74) for word in range(1000)]
    first, second = plan([1] * 1000, far, {"max_words": 100, "max_tokens": 400, "overlap": 12})[:2]
    assert (first.stop, second.first) == (100, 74)
    further = [word in (0, 49) for word in range(1000)]
    assert plan([1] * 1000, further, {"max_words": 100, "max_tokens": 400, "overlap": 12})[1].first == 88


def test_the_choice_of_edges_counts_sub_words_too() -> None:
    limits = {"max_words": 200, "max_tokens": 400, "overlap": 3}
    lengths = [1] * 80 + [20] * 40  # the sub-words run out at word 96
    first, second = plan(lengths, [word in (0, 80, 84) for word in range(120)], limits)[:2]
    assert (first.stop, second.first) == (96, 93)
    first, second = plan(lengths, [word in (0, 87) for word in range(120)], limits)[:2]
    assert (first.stop, second.first) == (96, 87)


def test_a_giant_word_after_a_sentence_end_does_not_repeat_the_window() -> None:
    lengths = [40 if word == 21 else 1 for word in range(30)]
    windows = plan(
        lengths, [word in (0, 10, 20) for word in range(30)], {"max_words": 40, "max_tokens": 40, "overlap": 3}
    )
    assert [(window.first, window.stop) for window in windows] == [(0, 20), (10, 21), (21, 22), (22, 30)]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_words": 12, "max_tokens": 100, "overlap": 12},
        {"max_words": 12, "max_tokens": 0, "overlap": 3},
        {"max_words": 12, "max_tokens": 100, "overlap": -1},
        {"max_words": 0, "max_tokens": 100, "overlap": 0},
    ],
)
def test_limits_that_cannot_be_met_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        plan([1, 1], [True, False], limits)


def test_wrong_documents_are_refused() -> None:
    limits = {"max_words": 12, "max_tokens": 100, "overlap": 3}
    with pytest.raises(ValueError, match="sentence marks"):
        plan([1, 1], [True], limits)
    with pytest.raises(ValueError, match="negative"):
        plan([1, -1], [True, False], limits)
