"""Tests the choice among candidates, in texts with characters of several code points."""

import numpy as np
import pytest
import regex

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
        entities = choose(text, settings, candidates(*spans))
        places = [(entity.start, entity.end, entity.label) for entity in entities]
        assert entities and {edge for place in places for edge in place[:2]} <= edges
        assert len(places) == len({*places})
        if not nested and not multi_label:
            assert all(one[1] <= other[0] for one, other in zip(places, places[1:], strict=False))


def test_parts_of_one_character_are_one_entity_with_the_best_score() -> None:
    text = cut("Zoe\u0308 met Ada")
    assert len(text.offsets) == 4  # the mark is a separate word
    entities = choose(text, Settings.make(["name"]), candidates((0, 0, 0, 0.7), (1, 1, 0, 0.9), (3, 3, 0, 0.8)))
    assert [(entity.text, entity.score) for entity in entities] == [("Zoe\u0308", 0.9), ("Ada", 0.8)]
