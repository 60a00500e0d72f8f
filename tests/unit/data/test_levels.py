"""Types in levels: sentences of a passage, the types that are drawn for a text, and what becomes negative."""

from collections import Counter

import numpy as np
import pytest

from spanlake.data.batches import tokenize
from spanlake.data.examples import Example, Mention, sentences_of
from spanlake.data.sampling import Sampling, SetTypes, Types, sample_levels, sample_types
from spanlake.package import open_package

GUITARIST, SINGER, PERSON = ("guitarist", "musician", "person"), ("singer", "musician", "person"), ("person",)
CITY = ("city", "location")
TEXT = "Dr. Ada Bell met St. John. He lives in York!  No. So it was."


def test_a_text_is_cut_into_its_sentences_with_their_mentions() -> None:
    mentions = (Mention(4, 12, "person"), Mention(17, 25, "poet", ("person",)), Mention(39, 43, "city"))
    example = Example(TEXT, mentions, ("drug",), ("river",))
    parts = sentences_of(example)
    assert [part.text for part in parts] == ["Dr. Ada Bell met St. John.", "He lives in York!", "No. So it was."]
    found = [[(part.text[m.start : m.end], m.types) for m in part.mentions] for part in parts]
    assert found == [[("Ada Bell", ("person",)), ("St. John", ("poet", "person"))], [("York", ("city",))], []]
    assert [part.elsewhere for part in parts] == [
        ("city", "river"),
        ("person", "poet", "river"),
        ("city", "person", "poet", "river"),
    ]
    assert {part.negatives for part in parts} == {("drug",)}
    whole = Example("No end here", (Mention(0, 2, "x"),))
    assert sentences_of(whole) == [whole] and sentences_of(Example("", ())) == [Example("", ())]


def test_windows_of_a_long_text_know_the_types_of_the_rest() -> None:
    package = open_package("mini")
    filler = "word " * 300
    text = f"Ada {filler}York {filler}Ben"
    mentions = (
        Mention(0, 3, "poet", ("person",)),
        Mention(4 + len(filler), 8 + len(filler), "city"),
        Mention(len(text) - 3, len(text), "person"),
        Mention(5, 7, "inside a word"),
    )
    windows = tokenize([Example(text, mentions, (), ("river",))], package.tokenizer, package.config, source=3)
    assert len(windows) > 1 and {window.source for window in windows} == {3}
    for window in windows:
        here = {label for *_, types in window.spans for label in types}
        assert {*window.elsewhere} == {"poet", "person", "city", "river"} - here
    assert windows[0].spans[0][2] == ("poet", "person")


def drawn(own: list[Types], sampling: Sampling, times: int = 400, **more: list[str]) -> list[tuple[set[str], dict]]:
    """What is asked for, and by what name each mention's types go."""
    source = SetTypes(sampling, {"boat": 3, "musicians": 3, "river bank": 1, "taxes": 1})
    found = []
    for seed in range(times):
        absent, elsewhere = more.get("absent", []), more.get("elsewhere", [])
        names, places = sample_levels(own, absent, elsewhere, source, np.random.default_rng(seed))
        assert len({*names}) == len(names) <= sampling.max_types
        found.append(({*names}, {types: names[place] for types, place in places.items()}))
    return found


def levels(**changes: float) -> Sampling:
    none = {"max_negatives": 0, "above_rate": 0, "absent_rate": 0, "elsewhere_rate": 0}
    return Sampling.model_validate({"levels": True, "specific_rate": 0, "broadest_rate": 0, **none, **changes})


def test_each_mention_goes_by_the_most_specific_type_that_was_drawn() -> None:
    own = [GUITARIST, SINGER, PERSON, CITY, GUITARIST]
    seen = Counter[str]()
    for names, asked in drawn(own, levels(above_rate=1), 1000):
        for types in {*own}:
            here = [label for label in types if label in names]
            assert asked.get(types) == (here[0] if here else None)
        seen.update(names)
    assert {*seen} == {label for types in own for label in types}
    assert all(500 < count < 800 for count in seen.values())  # a share from a quarter to all
    assert len({frozenset(names) for names, _ in drawn(own, levels(above_rate=1))}) > 30


def test_texts_are_asked_for_the_most_specific_or_the_broadest_types() -> None:
    own = [GUITARIST, SINGER, CITY]
    specific = drawn(own, levels(specific_rate=1))
    assert all(asked == {GUITARIST: "guitarist", SINGER: "singer", CITY: "city"} for _, asked in specific)
    assert all(names == {"guitarist", "singer", "city"} for names, _ in specific)
    assert all(names == {"person", "location"} for names, _ in drawn(own, levels(broadest_rate=1)))
    mixed = [frozenset(names) for names, _ in drawn(own, levels(specific_rate=0.3, broadest_rate=0.5), 1000)]
    counts = Counter(mixed)
    assert 250 < counts[frozenset(["guitarist", "singer", "city"])] < 400  # a share may be all of them, too
    assert 450 < counts[frozenset(["person", "location"])] < 550


def test_drawn_types_that_go_to_no_mention_are_negatives_at_their_rate() -> None:
    lost = Counter[bool]()
    for names, asked in drawn([GUITARIST], levels(least_share=1, above_rate=0.4), 1000):
        assert asked == {GUITARIST: "guitarist"}
        lost.update(["musician" in names, "person" in names])
    assert 700 < lost[True] < 900
    assert all(names == {"guitarist"} for names, _ in drawn([GUITARIST], levels(least_share=1)))


def test_absent_types_and_those_of_the_rest_of_the_passage_are_negatives_at_their_rates() -> None:
    more = {"absent": ["drug", "person"], "elsewhere": ["city", "musician"]}
    sampling = levels(specific_rate=1, absent_rate=0.6, elsewhere_rate=0.3)
    seen = Counter(label for names, _ in drawn([GUITARIST], sampling, 1000, **more) for label in names)
    assert seen["guitarist"] == 1000 and 550 < seen["drug"] < 650 and 250 < seen["city"] < 350
    assert {*seen} == {"guitarist", "drug", "city"}  # what is true of a mention here is no negative


def test_types_of_other_texts_share_no_word_with_those_of_the_passage() -> None:
    sampling = levels(specific_rate=1, max_negatives=3)
    asked = [names for names, _ in drawn([GUITARIST], sampling, 600, elsewhere=["tax"])]
    seen = Counter(label for names in asked for label in names)
    assert {*seen} == {
        "guitarist",
        "boat",
        "river bank",
        "taxes",
    }  # "musicians" is "musician", but "taxes" is not "tax"
    assert {len(names) for names in asked} == {1, 2, 3, 4}
    often = levels(specific_rate=1, max_negatives=1, frequency_power=2)
    counts = Counter(label for names, _ in drawn([CITY], often, 2000) for label in names)
    assert counts["boat"] > 6 * counts["taxes"] > 0


def test_more_types_than_a_prompt_should_hold_are_cut_to_a_random_number() -> None:
    own: list[Types] = [(f"kind {i}", f"group {i % 3}") for i in range(30)]
    sizes = Counter[int]()
    for names, asked in drawn(own, levels(specific_rate=1, max_positives=8)):
        sizes[len(names)] += 1
        assert {*asked.values()} == names
    assert {*sizes} == {5, 6, 7, 8}
    for names, asked in drawn(own, levels(least_share=1, max_positives=8)):
        assert all(asked[types] == next(label for label in types if label in names) for types in asked)
        assert {"group 0", "group 1", "group 2"} <= names  # a mention whose type was cut goes by its broader one


def test_a_text_without_mentions_is_asked_for_something() -> None:
    for names, asked in drawn([], levels(max_negatives=2), 100):
        assert names and not asked
    assert all(names for names, _ in drawn([CITY], levels(least_share=0), 100))
    empty = SetTypes(levels())
    assert sample_levels([], [], [], empty, np.random.default_rng(0)) == ([], {})


def test_without_levels_a_mention_goes_by_its_most_specific_type() -> None:
    sampling = Sampling(negatives="own", drop_types=False, broader={"person": "living thing"})
    rng = np.random.default_rng(0)
    candidates = ["musician", "person", "living thing", "boat"]
    for _ in range(50):
        names, places = sample_types([GUITARIST], candidates, sampling, rng)
        assert {*names} <= {"guitarist", "boat"} and names[places[GUITARIST]] == "guitarist"
    wider = sampling.model_copy(update={"broader_rate": 1.0})
    asked = {
        names[places[GUITARIST]] for names, places in (sample_types([GUITARIST], [], wider, rng) for _ in range(50))
    }
    assert asked == {"musician", "person"}


def test_shares_of_the_same_texts_add_up_to_no_more_than_all() -> None:
    with pytest.raises(ValueError, match=r"specific_rate \(0.6\) and sampling.broadest_rate \(0.5\)"):
        levels(specific_rate=0.6, broadest_rate=0.5)
