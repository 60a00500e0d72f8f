"""Tests the splitters over other libraries, each where its library is installed."""

import re

import pytest

from spanlake.errors import UserError
from spanlake.splitters.find import find_splitter
from spanlake.splitters.libraries import LIBRARIES, place_words

TEXTS = [
    "Ada Lovelace met Charles Babbage in London.",
    "王小明在北京大学学习计算机科学。",
    "東京大学で働いている田中さんは、昨日パリに行きました。",
    "김철수는 서울대학교에서 일한다.",
    "नरेंद्र मोदी भारत के प्रधानमंत्री हैं।",
    "يعمل محمد في جامعة القاهرة.",
    "a  b\n\n  c 😀 \u200b x\ud800y",
    " \n",
    "",
]


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_whitespace_lies_between_words(name: str) -> None:
    try:
        split = find_splitter(name)
    except UserError as error:
        assert re.fullmatch(rf"The splitter '{name}' .*; run `(pip install|python -c) .*`\.", str(error)), error
        pytest.skip(str(error))
    for text in TEXTS:
        at = 0
        for start, end in split(text).tolist():
            assert at <= start < end <= len(text) and not text[at:start].strip() and text[start:end].strip()
            at = end
        assert not text[at:].strip()


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (["ab", "cd"], ["ab", "cd", "ab"]),
        (["ab", "xx", "ab"], ["ab", "cd", "ab"]),
        (["ab ", " ", "c"], ["ab", "c", "d", "ab"]),
        ([], ["ab", "cd", "ab"]),
    ],
)
def test_what_a_library_drops_or_alters_is_a_word_of_its_own(words: list[str], places: list[str]) -> None:
    text = "ab cd  ab "
    assert [text[start:end] for start, end in place_words(text, words)] == places


def test_an_unknown_splitter_is_named() -> None:
    with pytest.raises(UserError, match=r"The splitter 'mecap' is unknown; .* gliner, gliner2, unicode, .*\."):
        find_splitter("mecap")
