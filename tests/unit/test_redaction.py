"""Redaction replaces entities by offset in any text, and leaves nothing of an entity."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanlake.decoding import Entity
from spanlake.errors import UserError
from spanlake.redaction import KEY_VARIABLE, KEYED, MASK, STYLES, Redaction, covered, read_key

KEY = b"0123456789abcdef"
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def redaction(style: str, key: bytes = KEY) -> Redaction:
    return Redaction(style, key if style in KEYED else None)


def entity(text: str, start: int, end: int, label: str = "person", score: float = 0.5) -> Entity:
    return Entity(start, end, text[start:end], label, score)


@st.composite
def annotated(draw: st.DrawFn) -> tuple[str, list[Entity]]:
    """Draws a text of any characters, and entities anywhere in it: overlapping, nested, adjacent, equal."""
    text = draw(TEXT)
    spans = st.integers(0, len(text) - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, len(text)))
    )
    drawn = draw(st.lists(st.tuples(spans, st.sampled_from(["person", "place"]), st.floats(0.5, 1)), max_size=8))
    return text, [entity(text, start, end, label, score) for (start, end), label, score in drawn]


@given(annotated(), st.sampled_from([style for style in STYLES if style != "surrogate"]))
def test_what_no_entity_covers_stays_and_everything_else_goes(case: tuple[str, list[Entity]], style: str) -> None:
    text, entities = case
    hidden = {index for found in entities for index in range(found.start, found.end)}
    unions = covered(entities)
    assert hidden == {index for start, end, _ in unions for index in range(start, end)}
    assert all(before[1] <= after[0] for before, after in zip(unions, unions[1:], strict=False))

    rest = redaction(style).text(text, entities)
    position = 0
    for start, end, longest in unions:
        kept = text[position:start]
        assert rest.startswith(kept)
        rest = rest[len(kept) :]
        name = longest.label.upper()
        opening = {"label": f"[{name}]", "hash": f"[{name}:", "mask": MASK}[style]
        assert rest.startswith(opening)
        rest = rest[rest.index("]") + 1 :]
        position = end
    assert rest == text[position:]


@given(annotated(), st.randoms(use_true_random=False))
def test_the_order_of_entities_does_not_matter(case: tuple[str, list[Entity]], order) -> None:
    text, entities = case
    shuffled = list(entities)
    order.shuffle(shuffled)
    assert redaction("hash").text(text, shuffled) == redaction("hash").text(text, entities)


def test_overlapping_entities_are_replaced_as_one_under_the_label_of_the_longest() -> None:
    text = "The University of Turin in Italy"
    found = [
        entity(text, 4, 23, "organization"),
        entity(text, 18, 23, "city", 0.99),
        entity(text, 27, 32, "country", 0.6),
        entity(text, 27, 32, "place", 0.7),
    ]
    assert redaction("label").text(text, found) == "The [ORGANIZATION] in [PLACE]"
    assert redaction("mask").text(text, found) == f"The {MASK} in {MASK}"
    assert redaction("label").text(text, []) == text


def test_a_hash_is_the_same_for_the_same_name_label_and_key_only() -> None:
    text = "Zoe met ZOE, Zoë and Zoe\u0308 in Zoe"
    person = [entity(text, 0, 3), entity(text, 8, 11), entity(text, 13, 16), entity(text, 21, 25)]
    place = entity(text, 29, 32, "place")
    first, second, third, fourth, fifth = (each.text for each in redaction("hash").hidden([*person, place]))
    assert first == second and third == fourth and first != third
    assert fifth.removeprefix("[PLACE:") != first.removeprefix("[PERSON:")
    assert redaction("hash").text(text, [*person, place]) == (f"{first} met {second}, {third} and {fourth} in {fifth}")
    assert redaction("hash", b"another key of 16+").hidden(person)[0].text != first
    assert "zoe" not in first.lower()


def test_what_identifies_a_redaction_tells_keys_apart_and_does_not_show_them() -> None:
    one, other = redaction("hash"), redaction("hash", b"another key of 16+")
    assert one.as_json() == redaction("hash").as_json() != other.as_json()
    assert redaction("label").as_json() == {"style": "label", "key_check": None}
    assert KEY.decode() not in f"{one!r} {one.as_json()}"


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_key(str(tmp_path / "key")) == KEY
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    assert read_key(None) == KEY
    monkeypatch.setenv(KEY_VARIABLE, "short-secret")
    with pytest.raises(UserError, match="has 12 bytes and needs 16") as caught:
        read_key(None)
    assert "short-secret" not in str(caught.value)
    monkeypatch.delenv(KEY_VARIABLE)
    assert read_key(None) is None
    with pytest.raises(UserError, match="none cannot be read"):
        read_key(str(tmp_path / "none"))


# --- surrogates -------------------------------------------------------------------------------------------------------

LETTER = "Ada Lovelace met Bob. ada lovelace wrote to bob@example.org about order XK-2231/b; Bob paid."


def in_letter(surface: str, label: str, nth: int = 0) -> Entity:
    start = -1
    for _ in range(nth + 1):
        start = LETTER.index(surface, start + 1)
    return entity(LETTER, start, start + len(surface), label)


NAMES = [
    in_letter("Ada Lovelace", "person"),
    in_letter("Bob", "person"),
    in_letter("ada lovelace", "person"),
    in_letter("bob@example.org", "e-mail address"),
    in_letter("XK-2231/b", "order number"),
    in_letter("Bob", "person", 1),
]


def test_the_same_name_has_the_same_surrogate() -> None:
    found = redaction("surrogate").text(LETTER, NAMES)
    form = r"(.+) met (.+)\. \1 wrote to (\S+@example\.\w+) about order ([A-Z]{2}-\d{4}/[a-z]); \2 paid\."
    match = re.fullmatch(form, found)
    assert match is not None, found
    assert not {"Ada Lovelace", "Bob", "bob@example.org", "XK-2231/b"} & {*match.groups()}
    assert len({*match.groups()}) == 4
    hidden = [each.text for each in redaction("surrogate").hidden(NAMES)]
    assert hidden == [match[1], match[2], match[1], match[3], match[4], match[2]]


def test_surrogates_depend_on_the_key_and_the_locale_and_on_nothing_else() -> None:
    first = redaction("surrogate").text(LETTER, NAMES)
    assert redaction("surrogate").text(LETTER, NAMES[::-1]) == first
    assert redaction("surrogate", b"another key of 16+").text(LETTER, NAMES) != first
    japanese = Redaction("surrogate", KEY, locale="ja_JP")
    assert not japanese.text(LETTER, NAMES[:1]).split(" met ")[0].isascii()
    assert japanese.as_json() != redaction("surrogate").as_json()
    with pytest.raises(UserError, match="The locale 'xx' is unknown"):
        Redaction("surrogate", KEY, locale="xx")


def test_different_names_have_different_surrogates_even_where_few_are_possible() -> None:
    text = " ".join("0123456789")
    digits = [entity(text, place, place + 1, "digit") for place in range(0, len(text), 2)]
    values = [each.text for each in redaction("surrogate").hidden(digits)]
    assert len({*values}) == 10
    assert not {*values} & {*"0123456789"}


def test_texts_of_one_document_share_their_surrogates() -> None:
    title, body = "Bob", "Ann and Bob"
    document = [entity(title, 0, 3), entity(body, 0, 3), entity(body, 8, 11)]
    of_title = redaction("surrogate").text(title, document[:1], document)
    of_body = redaction("surrogate").text(body, document[1:], document)
    assert of_body.endswith(f" and {of_title}")


@given(annotated())
def test_surrogates_of_any_text(case: tuple[str, list[Entity]]) -> None:
    text, entities = case
    redacted = redaction("surrogate").text(text, entities)
    unions = covered(entities)
    edges = [0, *(edge for start, end, _ in unions for edge in (start, end)), len(text)]
    kept = [text[first:last] for first, last in zip(edges[::2], edges[1::2], strict=True)]
    assert re.fullmatch(".*".join(map(re.escape, kept)), redacted, re.DOTALL)
