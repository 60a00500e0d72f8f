"""Tests the splitter `unicode` in fifteen scripts and in any text."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import SCRIPTS, cluster_edges

from spanlake.splitters.find import find_splitter
from spanlake.text import plan_windows, sentence_starts, whole_characters

AWKWARD = [*"a_-'’ \t\n\r\x00\x1c", "\u200b", "\u200d", "\u0301", "א", "\u0661", "\U0001f469", "中", "の", "ก", "ำ"]
AWKWARD += [*".!?\"')(。」", "\u2028", "\u3000", "\ufeff", "\ud800", "\udfff", "\U0001f1eb", "\ufe0f", "က", "်", "ᨩ"]
any_text = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=())), max_size=60)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in find_splitter("unicode")(text).tolist()]


def check(text: str) -> None:
    """Checks what every splitter promises, and that no word begins or ends inside a grapheme cluster."""
    offsets = find_splitter("unicode")(text)
    assert offsets.dtype == np.int64 and offsets.shape[1:] == (2,)
    flat = [0, *offsets.reshape(-1).tolist(), len(text)]
    assert all(low <= high for low, high in pairwise(flat)) and all(low < high for low, high in offsets.tolist())
    assert all(not text[flat[i] : flat[i + 1]].strip() for i in range(0, len(flat), 2))
    assert not any(word.isspace() for word in words_of(text))
    assert {*offsets.reshape(-1).tolist()} <= cluster_edges(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_every_script(script: str) -> None:
    text, expected = SCRIPTS[script]
    check(text)
    assert {*expected} <= {*words_of(text)}
    offsets = find_splitter("unicode")(text)
    assert whole_characters(text, offsets) is offsets  # nothing of a character is left out of an entity


@given(any_text)
def test_words_of_any_text(text: str) -> None:
    check(text)


def test_characters_beyond_sixteen_bits_do_not_shift_the_offsets() -> None:
    text = "😀 Ada 👨\u200d👩\u200d👧 met 𠮷野 in 🇫🇷."
    assert words_of(text) == ["😀", "Ada", "👨\u200d👩\u200d👧", "met", "𠮷", "野", "in", "🇫🇷", "."]


def test_signs_between_letters_and_digits() -> None:
    assert words_of("U.S.A costs 3.14, can't e-mail a_b's") == [
        *["U.S.A", "costs", "3.14", ",", "can", "'", "t", "e", "-", "mail", "a_b", "'", "s"]
    ]
    assert words_of(" \r\n\u3000") == [] and find_splitter("unicode")("").shape == (0, 2)


def test_sentences_and_windows_follow_the_words() -> None:
    text = "他来了。" * 200 + "नमस्ते दुनिया। " * 50
    offsets = find_splitter("unicode")(text)
    starts = sentence_starts(text, offsets)
    assert starts.sum() == 250
    windows = plan_windows(np.ones(len(offsets)), starts, max_words=100, max_tokens=400, overlap=12)
    assert len(windows) > 5 and all(starts[window.first] for window in windows)
