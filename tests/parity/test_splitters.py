"""The splitters that gliner names cut the words that gliner cuts."""

import pytest
from gliner.data_processing.tokenizer import WordsSplitter

from spanlake.splitters.find import find_splitter

TEXTS = [
    "Dr. O'Neil's e-mail: a_b@c.com; don't pay $3.14 to Zürich!",
    "東京大学で働いている田中さんは、昨日パリに行きました。",
    "김철수는 서울대학교에서 일한다.",
    "नरेंद्र मोदी भारत के प्रधानमंत्री हैं।",
    "王小明在北京大学学习计算机科学。",
]


@pytest.mark.parametrize("name", ["whitespace", "janome", "mecab"])
def test_the_same_words(name: str) -> None:
    theirs, ours = WordsSplitter(name), find_splitter("gliner" if name == "whitespace" else name)
    for text in TEXTS:
        assert ours(text).tolist() == [[start, end] for word, start, end in theirs(text) if word.strip()]
