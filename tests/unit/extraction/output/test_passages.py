"""Passages are cropped around their entities and cut into marked pieces."""

import random
from typing import Any

from spanlake.extraction.output.passages import Mark, Passage, Piece

WORDS = "Ada Lovelace wrote the first program in London for an engine that nobody had built "


def entity(text: str, start: int, end: int, label: str = "x") -> dict[str, Any]:
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": 0.5}


def read_back(pieces: list[Piece]) -> str:
    return "".join(piece if isinstance(piece, str) else read_back(piece.pieces) for piece in pieces)


def marks(pieces: list[Piece]) -> list[Mark]:
    return [piece for piece in pieces if isinstance(piece, Mark)]


def test_a_long_text_is_cropped_to_whole_words_and_its_entities_move_along() -> None:
    text = WORDS * 20
    near, far = text.index("London", 500), text.index("London", 1400)
    passage = Passage(text, [entity(text, near, near + 6), entity(text, far, far + 6, "y")])
    for label, begin in ((None, near), ("x", near), ("y", far)):
        cropped = passage.cropped(200, 40, label)
        assert len(cropped.text) <= 200 + 4 and cropped.text.startswith("… ") and cropped.text.endswith(" …")
        assert cropped.text[2:-1] in text and text[text.index(cropped.text[2:-1], begin - 90) - 1] == " "
        assert [cropped.text[e["start"] : e["end"]] for e in cropped.entities] == ["London"]
    short = Passage("in London", [entity("in London", 3, 9)])
    assert short.cropped(200, 40) is short


def test_an_entity_that_reaches_beyond_the_crop_is_left_out() -> None:
    text = "a" * 300 + " b " + "c" * 300
    passage = Passage(text, [entity(text, 301, 302), entity(text, 303, 603)])
    cropped = passage.cropped(60, 10)
    assert [e["text"] for e in cropped.entities] == ["b"]
    assert cropped.text[cropped.entities[0]["start"]] == "b"


def test_pieces_give_the_text_back_and_hold_the_inner_entities() -> None:
    rng = random.Random(1)
    for _ in range(300):
        spans = {tuple(sorted(rng.sample(range(len(WORDS)), 2))) for _ in range(rng.randrange(8))}
        pieces = Passage(WORDS, [entity(WORDS, *span) for span in spans]).pieces()
        assert read_back(pieces) == WORDS
    nested = Passage(WORDS, [entity(WORDS, 4, 12), entity(WORDS, 0, 12), entity(WORDS, 0, 3)]).pieces()
    (outer,) = marks(nested)
    assert outer.entity["end"] == 12 and [m.entity["start"] for m in marks(outer.pieces)] == [0, 4]


def test_of_entities_that_cross_the_longest_is_marked() -> None:
    pieces = Passage(WORDS, [entity(WORDS, 0, 9), entity(WORDS, 4, 20), entity(WORDS, 30, 33)]).pieces()
    assert [(mark.entity["start"], mark.entity["end"]) for mark in marks(pieces)] == [(4, 20), (30, 33)]


def test_labels_of_one_span_lie_within_each_other() -> None:
    (outer,) = marks(Passage(WORDS, [entity(WORDS, 0, 3, "a"), entity(WORDS, 0, 3, "b")]).pieces())
    assert [mark.entity["label"] for mark in (outer, *marks(outer.pieces))] == ["a", "b"]
