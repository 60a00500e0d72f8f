"""Annotations in answers of language models."""

import pytest

from spanlake.annotation.prompt import DeadError, messages, read_annotation

TEXT = "Hendrix recorded it in London. London heard Hendrix."


def test_an_answer_becomes_mentions_with_types_in_levels_and_absent_types():
    answer = """Entities: [("Hendrix", "Guitarist", "musician", " person "), ("London", ["city", "location"]),
        ("london", "town"), ("Paris", "city"), ("record", "thing"), ("London. London", "song"), ("it",), ("it", ""), 5]
        Absent: ["award", "Award ", "city", "record label"]"""
    example, dropped = read_annotation(TEXT, answer)
    assert example.text == TEXT
    assert [(TEXT[m.start : m.end], m.types) for m in example.mentions] == [
        ("Hendrix", ("guitarist", "musician", "person")),
        ("London. London", ("song",)),
        ("Hendrix", ("guitarist", "musician", "person")),
    ]
    assert example.negatives == ("award", "city", "record label")
    assert dropped == {"not_found": 1, "inside_a_word": 1, "overlapping": 4, "without_type": 2, "malformed": 1}


def test_mentions_may_be_in_several_lists():
    answer = 'Entities: [("Ada", "person")]\n[("London", "city")]\nAbsent: ["film"]'
    example, dropped = read_annotation("Ada lives in London.", answer)
    assert [(mention.start, mention.label) for mention in example.mentions] == [(0, "person"), (13, "city")]
    assert example.negatives == ("film",) and not dropped


def test_the_first_types_of_a_string_count():
    example, _ = read_annotation("Ada met Bo", '[("Ada", "poet"), ("Ada", "person"), ("ADA", "city")]')
    assert [(m.start, m.end, m.types) for m in example.mentions] == [(0, 3, ("poet",))]


@pytest.mark.parametrize(("answer", "absent"), [("[]", ()), ('Entities: []\nAbsent: ["award"]', ("award",))])
def test_a_text_may_have_no_mentions(answer: str, absent: tuple[str, ...]):
    example, _ = read_annotation(TEXT, answer)
    assert (example.mentions, example.negatives) == ((), absent)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Ich kann das nicht.", "the answer cannot be read: it holds no list"),
        ('[("Hendrix", "person"), ("Lon', "breaks off or is not well-formed"),
        ('[("Hendrix", "person"), ("a "b" c", "d")] ["award"]', "breaks off or is not well-formed"),
        ('["Hendrix", "London"]', "no entity of the answer has a type"),
        (
            '[("Londres", "ville"), ("Paris", "ville")]',
            r"has none of the entities of the answer: \['Londres', 'Paris'\]",
        ),
    ],
)
def test_an_answer_that_would_teach_nonsense_is_dead(answer: str, reason: str):
    with pytest.raises(DeadError, match=reason):
        read_annotation(TEXT, answer)


def test_the_question_ends_with_the_text():
    assert messages(TEXT)[-1]["content"].endswith(f"Passage: {TEXT}")


def test_words_of_a_script_without_spaces_are_found():
    example, dropped = read_annotation("王小明在北京大学学习。", '[("王小明", "person"), ("北京大学", "university")]')
    assert [(m.start, m.end, m.label) for m in example.mentions] == [(0, 3, "person"), (4, 8, "university")]
    assert not dropped
