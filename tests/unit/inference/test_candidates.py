"""Tests the choice among candidates, in texts with characters of several code points."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import regex

from spanlake import Rules
from spanlake.decoding import Entity
from spanlake.inference.candidates import Candidates, choose
from spanlake.inference.settings import Settings
from spanlake.modeling.cutting import CutText
from spanlake.modeling.words import Words
from spanlake.text import word_offsets

DECOMPOSED = "Zoe\u0308 met हिन्दी in Que\u0301bec"


def candidates(*spans: tuple[int, int, int, float]) -> Candidates:
    start, end, label, score = map(np.array, zip(*spans, strict=True))
    return Candidates(np.zeros(len(spans), np.int64), start, end, label, score)


def cut(text: str) -> CutText:
    offsets = word_offsets(text)
    return CutText(text, offsets, Words.of([(1,)] * len(offsets)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_no_entity_begins_or_ends_inside_a_character(nested: bool, multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    edges = {0, *(cluster.end() for cluster in regex.finditer(r"\X", DECOMPOSED))}
    text = cut(DECOMPOSED)
    settings = Settings.make(["a", "b"], 0.5, nested, multi_label)
    for _ in range(50):
        starts = rng.integers(0, len(text.offsets), 12)
        ends = np.minimum(starts + rng.integers(0, 4, 12), len(text.offsets) - 1)
        spans = zip(starts.tolist(), ends.tolist(), rng.integers(0, 2, 12).tolist(), rng.random(12), strict=True)
        entities = choose([(text, settings)], candidates(*spans))[0]
        places = [(entity.start, entity.end, entity.label) for entity in entities]
        assert entities and {edge for place in places for edge in place[:2]} <= edges
        assert len(places) == len({*places})
        if not nested and not multi_label:
            assert all(one[1] <= other[0] for one, other in zip(places, places[1:], strict=False))


def test_parts_of_one_character_are_one_entity_with_the_best_score() -> None:
    text = cut("Zoe\u0308 met Ada")
    assert len(text.offsets) == 4  # the mark is a separate word
    found = candidates((0, 0, 0, 0.7), (1, 1, 0, 0.9), (3, 3, 0, 0.8))
    (entities,) = choose([(text, Settings.make(["name"]))], found)
    assert [(entity.text, entity.score) for entity in entities] == [("Zoe\u0308", 0.9), ("Ada", 0.8)]


# --- with rules -------------------------------------------------------------------------------------------------------

MAIL = "Ada Lovelace ada@example.org OPS-12 Ada"


def found_with(
    content: dict, *spans: tuple[int, int, int, float], **options: bool
) -> list[tuple[str, str, str | None]]:
    settings = Settings.make(["person", "place"], 0.5, **options, rules=Rules({"rules": [], **content}))
    (entities,) = choose([(cut(MAIL), settings)], candidates(*spans))
    assert [entity.text for entity in entities] == [MAIL[entity.start : entity.end] for entity in entities]
    return [(entity.text, entity.label, entity.source) for entity in entities]


EMAIL = {"label": "email", "kind": "email"}
WORDS = ["Ada", "Lovelace", "ada", "@", "example", ".", "org", "OPS-12", "Ada"]


def test_a_match_is_taken_before_the_model_chooses_among_the_rest() -> None:
    assert [MAIL[start:end] for start, end in word_offsets(MAIL)] == WORDS
    whole, name, last = (0, 6, 0, 0.99), (0, 1, 0, 0.6), (8, 8, 1, 0.7)
    assert found_with({"rules": [EMAIL]}, whole, name, last) == [
        ("Ada Lovelace", "person", "model"),
        ("ada@example.org", "email", "rule"),
        ("Ada", "place", "model"),
    ]


def test_an_earlier_rule_comes_before_a_later_one() -> None:
    part = {"label": "part", "pattern": "example"}
    assert found_with({"rules": [EMAIL, part]}, (7, 7, 0, 0.9)) == [
        ("ada@example.org", "email", "rule"),
        ("OPS-12", "person", "model"),
    ]
    assert found_with({"rules": [part, EMAIL]}, (7, 7, 0, 0.9))[0] == ("example", "part", "rule")


def test_matches_nest_and_share_spans_as_entities_do() -> None:
    around, same = (0, 6, 0, 0.9), (2, 6, 0, 0.8)
    assert found_with({"rules": [EMAIL]}, around, same, nested=True) == [
        ("Ada Lovelace ada@example.org", "person", "model"),
        ("ada@example.org", "email", "rule"),
    ]
    assert found_with({"rules": [EMAIL]}, same, multi_label=True) == [
        ("ada@example.org", "email", "rule"),
        ("ada@example.org", "person", "model"),
    ]


def test_a_match_may_begin_inside_a_word_and_keeps_the_label_of_the_model() -> None:
    ticket = {"label": "place", "pattern": "[0-9]+"}
    assert found_with({"rules": [ticket]}, (7, 7, 0, 0.9), (8, 8, 0, 0.9)) == [
        ("12", "place", "rule"),
        ("Ada", "person", "model"),
    ]


def test_an_allowed_term_is_not_reported() -> None:
    spans = [(0, 0, 0, 0.9), (1, 1, 0, 0.8), (8, 8, 0, 0.9)]
    allowed = {"rules": [EMAIL], "allow_list": ["ADA", "ada@example.org"]}
    assert found_with(allowed, *spans) == [("Lovelace", "person", "model")]


def test_rules_that_match_nothing_change_only_the_source() -> None:
    rng = np.random.default_rng(1)
    text = cut(DECOMPOSED)
    rules = Rules({"rules": [{"label": "x", "pattern": "never"}]})
    for nested in (False, True):
        plain = Settings.make(["a", "b"], 0.5, nested)
        for _ in range(20):
            starts = rng.integers(0, len(text.offsets), 12)
            ends = np.minimum(starts + rng.integers(0, 4, 12), len(text.offsets) - 1)
            found = candidates(
                *zip(starts.tolist(), ends.tolist(), rng.integers(0, 2, 12).tolist(), rng.random(12), strict=True)
            )
            (with_rules,) = choose([(text, replace(plain, rules=rules))], found)
            assert {entity.source for entity in with_rules} == {"model"}
            assert [[replace(entity, source=None) for entity in with_rules]] == choose([(text, plain)], found)


def test_a_text_without_words_has_no_entities() -> None:
    settings = Settings.make(["a"], rules=Rules({"rules": [{"label": "gap", "pattern": " +"}]}))
    nothing = Candidates(*(np.zeros(0, np.int64) for _ in range(4)), np.zeros(0))
    assert choose([(cut("   "), settings)], nothing) == [[]]
    (found,) = choose([(cut("a  b"), settings)], nothing)
    assert [entity.text for entity in found] == ["  "]


def test_texts_with_settings_of_their_own_are_chosen_together() -> None:
    names = ["Zoë 👩‍🔬 works at  McGill-University.", "no entity", "Zoe\u0308 met Ada", "Ada ada@example.org"]
    texts = [cut(name) for name in names]
    last = len(texts[0].offsets) - 2
    flat = Settings.make(["org", "person"])
    both = Settings.make(["name", "other"], 0.5, True, True)
    with_rules = replace(flat, rules=Rules({"rules": [EMAIL]}))
    spans = [(0, 0, 1, 0.5), (last, last, 0, 0.25), (last - 1, last, 1, 0.125)]
    spans += [(0, 0, 0, 0.9), (0, 3, 0, 0.8), (0, 3, 1, 0.7), (0, 1, 0, 0.7), (0, 0, 0, 0.8)]
    found = replace(candidates(*spans), text=np.array([0, 0, 0, 2, 2, 2, 3, 3]))
    first, none, third, fourth = choose(list(zip(texts, [flat, flat, both, with_rules], strict=True)), found)
    assert first == [Entity(0, 3, "Zoë", "person", 0.5), Entity(18, 35, "McGill-University", "org", 0.25)]
    assert none == []
    assert [(entity.text, entity.label) for entity in third] == [
        ("Zoe\u0308", "name"),
        ("Zoe\u0308 met Ada", "name"),
        ("Zoe\u0308 met Ada", "other"),
    ]
    assert {**first[0].to_dict(), "source": None} == asdict(first[0])
    assert {type(value) for value in first[0].to_dict().values()} == {int, str, float}
    assert [(entity.text, entity.label, entity.source) for entity in fourth] == [
        ("Ada", "org", "model"),
        ("ada@example.org", "email", "rule"),
    ]


def test_an_entity_wider_than_the_widest_span_is_joined_on_demand() -> None:
    text = cut("Ada Byron King of Lovelace met Ada")
    found = candidates((0, 1, 0, 0.9), (2, 4, 0, 0.8), (6, 6, 0, 0.7))
    settings = Settings.make(["name"])
    assert [entity.text for entity in choose([(text, settings)], found)[0]] == ["Ada Byron", "King of Lovelace", "Ada"]
    (joined,) = choose([(text, settings.joining(True))], found)
    assert [(entity.text, entity.score) for entity in joined] == [("Ada Byron King of Lovelace", 0.8), ("Ada", 0.7)]
