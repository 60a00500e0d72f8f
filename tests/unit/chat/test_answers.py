"""Lists in answers of language models."""

import pytest

from spanlake.chat.answers import Rows, read_rows

ADA = [("Ada", "person")]


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        ('[("Ada", "person")]', ADA),
        ("[('Ada', 'person'),]", ADA),
        ('[["Ada", "person"]]', ADA),
        ('[{"entity": "Ada", "type": "person"}]', ADA),
        ('{"entities": [{"Ada": "person"}]}', ADA),
        ('```json\n[["Ada", "person"]]\n```', ADA),
        ('Sure, [the list] of the user\'s text is [("Ada", "person")] [1].', ADA),
        ('<think>[("Bo", "person")]?</think>[("Ada", "person")]', ADA),
        ("[(“Ada”, “person”)]", ADA),
        ('[("Ada", ["mathematician", "person"])]', [("Ada", "mathematician", "person")]),
        ('[("Ada", "mathematician", "person")]', [("Ada", "mathematician", "person")]),
        ('[{"name": "Ada", "types": ["mathematician", "person"]}]', [("Ada", "mathematician", "person")]),
        ('person: [("Ada", "person")]\ncity: [["Rome", "city"]]', [*ADA, ("Rome", "city")]),
        ('["Ada", "O\'Neil"]', [("Ada",), ("O'Neil",)]),
        ("[]", []),
        ("None.", []),
    ],
)
def test_lists_in_many_forms_are_read(answer: str, rows: list[tuple[str, ...]]):
    assert read_rows(answer) == Rows(rows, 0, True)


@pytest.mark.parametrize(
    "answer",
    [
        '[("Ada", "person"), ("Bo", "per',
        '[("Ada", "person")',
        '[["Ada", ["person"]], ["Bo", ["per',
        "[('Ada', 'person'), ('Rock 'n' Roll', 'song')]",
    ],
)
def test_the_whole_rows_of_a_broken_list_are_read(answer: str):
    assert read_rows(answer) == Rows(ADA, 0, False)


def test_rows_of_another_form_are_counted():
    assert read_rows('[["Ada", "person"], 5, [], {}, [1, "person"], ["Bo", 2], null]') == Rows(ADA, 6, True)


@pytest.mark.parametrize("answer", ["", "Sorry, I cannot.", "Ada: person", "[" * 100_000, '("' * 90_000, "[(" * 90_000])
def test_an_answer_without_a_list_is_refused(answer: str):
    with pytest.raises(ValueError, match="no list"):
        read_rows(answer)
