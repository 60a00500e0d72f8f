"""The placing of mentions on words, windows over long texts, the sampling of types, and the making of batches."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from spanlake.data.batches import TokenizedExample, plan_epoch, tokenize, training_batch
from spanlake.data.examples import Example, Mention
from spanlake.data.sampling import Sampling, SetTypes, sample_types
from spanlake.errors import UserError
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.modeling.words import Words


@pytest.fixture
def tokenizer() -> PromptTokenizer:
    """Every ASCII letter is a sub-word, so counts are easy to follow."""
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[ENT]", "[SEP]", *map(chr, range(33, 127))])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[ENT]", "[SEP]"])
    return PromptTokenizer(backend, entity_token="[ENT]", separator_token="[SEP]", entity_token_id=1)


CONFIG = ModelConfig(
    encoder={"model_type": "bert", "max_position_embeddings": 400},
    hidden_size=8,
    span_head="paper",
    entity_token="[ENT]",
    separator_token="[SEP]",
    entity_token_id=1,
    max_width=3,
)


def own(**settings: Any) -> Sampling:
    return Sampling(negatives="own", drop_types=False, **settings)


OWN = own()


def sample(
    own: list[str],
    candidates: list[str],
    sampling: Sampling,
    rng: np.random.Generator,
    frequencies: dict[str, int] | None = None,
) -> tuple[list[str], dict[str, int]]:
    """The types of a text whose mentions have one each."""
    names, places = sample_types([(label,) for label in own], candidates, sampling, rng, frequencies)
    return names, {label: place for (label,), place in places.items()}


def one_each(*spans: tuple[int, int, str]) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    return tuple((first, last, (label,)) for first, last, label in spans)


def test_mentions_that_no_span_stands_for_are_left_out(tokenizer: PromptTokenizer) -> None:
    text = "one two three four"
    mentions = (
        Mention(0, 3, "kept"),
        Mention(0, 18, "wide"),  # four words
        Mention(1, 7, "inside"),  # begins within "one"
    )
    (example,) = tokenize([Example(text, mentions)], tokenizer, CONFIG)
    assert example.spans == one_each((0, 0, "kept"))
    assert tokenize([Example(" \n", ())], tokenizer, CONFIG) == []


@pytest.mark.parametrize(
    "limits", [{"max_words": 20}, {"encoder": {"model_type": "bert", "max_position_embeddings": 40}}]
)
def test_long_texts_are_trained_in_windows_that_lose_no_mention(tokenizer: PromptTokenizer, limits: dict) -> None:
    """By the limit of words, and by that of sub-words (each letter is one)."""
    config = dataclasses.replace(CONFIG, **limits)
    words = [f"{'abc'[i % 3] * (1 + i % 2)}{'.' if i % 7 == 0 else ''}" for i in range(200)]
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(200)]
    mentions = tuple(
        Mention(starts[i], starts[i + k - 1] + len(words[i + k - 1].rstrip(".")), f"t{i}-{k}")
        for i in range(197)
        for k in (1, 3)
        if "." not in "".join(words[i : i + k - 1])  # a full stop is a word of its own
    )
    example = Example(" ".join(words), mentions)
    windows = tokenize([example], tokenizer, config, where=["x, row 1"])
    assert len(windows) > 5
    assert all(window.tokens < config.max_tokens and len(window.words) <= config.max_words for window in windows)
    found = {label for window in windows for *_, (label,) in window.spans}
    assert found == {mention.label for mention in mentions}
    whole = {mention.label: example.text[mention.start : mention.end] for mention in mentions}
    letters = {i: token for token, i in tokenizer.backend.get_vocab().items()}
    for window in windows:
        for first, last, (label,) in window.spans:
            inside = [letters[i] for i in window.words[first : last + 1].ids.tolist()]
            assert "".join(inside) == whole[label].replace(" ", "")
    assert windows[1].where == "x, row 1, window 2"


def test_own_types_are_placed_and_negatives_come_from_the_candidates() -> None:
    sampling = own(max_types=6, max_negatives=3)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        names, places = sample(["drug", "ship", "drug"], ["drug", "ship", "a", "b", "c", "d"], sampling, rng)
        assert {names[place] for place in places.values()} == {"drug", "ship"} == set(places)
        assert len(set(names)) == len(names) <= 5
        seen.update(names)
    assert seen == {"drug", "ship", "a", "b", "c", "d"}


def test_a_text_without_mentions_is_still_asked_for_something() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        names, places = sample([], ["a", "b"], own(max_negatives=2), rng)
        assert names and not places


def test_a_broader_type_stands_in_for_all_below_it() -> None:
    broader = {"poet": "writer", "writer": "person", "singer": "person"}
    sampling = own(max_negatives=5, broader_rate=0.5, broader=broader)
    rng = np.random.default_rng(0)
    asked = Counter[str]()
    for _ in range(400):
        names, places = sample(["poet"], ["poet", "writer", "person", "city"], sampling, rng)
        (place,) = places.values()
        asked[names[place]] += 1
        narrower = {"poet": set(), "writer": {"poet"}, "person": {"poet", "writer"}}[names[place]]
        assert not narrower & set(names)
    assert 150 < asked["poet"] < 250 and min(asked["writer"], asked["person"]) > 60


def test_what_is_broader_than_the_type_asked_for_is_a_negative() -> None:
    sampling = own(max_negatives=0, above_rate=1.0, broader={"poet": "writer", "writer": "person"})
    names, places = sample(["poet"], ["poet", "person"], sampling, np.random.default_rng(0))
    assert set(names) == {"poet", "writer", "person"} and places == {"poet": names.index("poet")}
    never = own(max_negatives=9, above_rate=0.0, broader=sampling.broader)
    names, _ = sample(["poet"], ["poet", "person"], never, np.random.default_rng(0))
    assert names == ["poet"]


def test_synonyms_rename_but_never_collide() -> None:
    sampling = own(max_negatives=2, synonym_rate=1.0, synonyms={"city": ["town"], "village": ["town"]})
    rng = np.random.default_rng(0)
    for _ in range(100):
        names, places = sample(["city", "village"], ["city", "village"], sampling, rng)
        assert len(set(names)) == 2 and "town" in names
        assert places["city"] != places["village"]


def test_own_types_beyond_the_limit_are_left_out_of_the_targets_too() -> None:
    types = [f"t{i}" for i in range(30)]
    names, places = sample(types, types, own(max_types=25), np.random.default_rng(0))
    assert len(names) == 25 and len(places) == 25


def test_an_epoch_holds_every_example_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, size=5000).tolist()
    batches = list(plan_epoch(lengths, 2048, 64, np.random.default_rng(1)))
    assert sorted(i for batch in batches for i in batch) == list(range(5000))
    assert all(len(b) <= 64 and (len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 2048) for b in batches)
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded < 1.1 * sum(lengths)


def words_of(tokenizer: PromptTokenizer, *words: str) -> Words:
    return tokenizer.words(words)


def names_in(tokenizer: PromptTokenizer, batch: object, row: int) -> list[str]:
    """The types of one prompt, read back from its sub-words."""
    letters = {i: token for token, i in tokenizer.backend.get_vocab().items()}
    ids = batch.input_ids[row].tolist()  # type: ignore[attr-defined]
    prompt = [letters[i] for i in ids[: ids.index(tokenizer.backend.token_to_id("[SEP]"))]]
    return "".join(prompt).split("[ENT]")[1:]


def test_the_same_seed_and_step_give_the_same_batch(tokenizer: PromptTokenizer) -> None:
    examples = [TokenizedExample(words_of(tokenizer, "abc", "de"), one_each((0, 1, "x")), ("x", "y", "z"))] * 4

    def batch(seed: int, step: int) -> list[list[int]]:
        made, _ = training_batch(examples, range(4), tokenizer, [SetTypes(OWN)], CONFIG, seed=seed, step=step)
        return made.input_ids.tolist()

    assert batch(7, 1) == batch(7, 1) != batch(7, 2)
    assert batch(7, 1) != batch(8, 1)


@pytest.mark.parametrize("sampling", [OWN, Sampling(), Sampling(negative_ratio=0.75, frequency_power=0.5)])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_an_example_is_asked_the_same_whatever_the_workers(
    tokenizer: PromptTokenizer, workers: int, sampling: Sampling
) -> None:
    """Negatives come from the whole batch, also where this worker computes one text of it."""
    words = words_of(tokenizer, "a", "b", "c")
    examples = [TokenizedExample(words, one_each((0, 1, f"t{i}"), (2, 2, "u")), (f"t{i}", "u", "v")) for i in range(5)]

    def asked(chosen: range) -> dict[int, tuple[list[str], float]]:
        batch, true = training_batch(
            examples, chosen, tokenizer, [SetTypes(sampling)], CONFIG, seed=1, step=3, frequencies={"u": 9}
        )
        return {i: (names_in(tokenizer, batch, row), (true[0] == row).sum().item()) for row, i in enumerate(chosen)}

    alone = asked(range(5))
    shared = [asked(range(rank, 5, workers)) for rank in range(workers)]
    assert alone == {i: row for share in shared for i, row in share.items()}


def test_negatives_come_from_the_other_texts_of_the_batch_at_the_ratio(tokenizer: PromptTokenizer) -> None:
    words = words_of(tokenizer, "a", "b", "c", "d")
    examples = [
        TokenizedExample(words, one_each(*((k, k, f"t{i}{k}") for k in range(4))), ("never",)) for i in range(6)
    ]
    for ratio, negatives in ((0.0, 0), (0.25, 1), (0.5, 4), (0.75, 12)):
        sampling = Sampling(negative_ratio=ratio, drop_types=False)
        batch, true = training_batch(examples, range(6), tokenizer, [SetTypes(sampling)], CONFIG, seed=0, step=1)
        for row in range(6):
            names = names_in(tokenizer, batch, row)
            own = {f"t{row}{k}" for k in range(4)}
            assert own <= {*names} and len({*names} - own) == negatives and "never" not in names
        assert true.shape == (4, 24)


def test_the_ratio_is_kept_where_there_are_more_types_than_a_prompt_holds() -> None:
    own, others = [f"t{i}" for i in range(30)], [f"o{i}" for i in range(90)]
    for ratio in (0.25, 0.5, 0.75):
        sampling = Sampling(negative_ratio=ratio, drop_types=False)
        names, places = sample(own, own + others, sampling, np.random.default_rng(0))
        assert len(names) <= 25 and len(places) == round(25 * (1 - ratio))
        assert abs(len(names) - len(places) - 25 * ratio) <= 1


def test_types_are_dropped_at_random_and_targets_with_them() -> None:
    rng = np.random.default_rng(0)
    sizes = Counter[int]()
    for _ in range(800):
        names, places = sample(["a", "b"], ["a", "b", "c", "d"], Sampling(), rng)
        sizes[len(names)] += 1
        assert {label for label in ("a", "b") if label in names} == set(places)
    assert set(sizes) == {1, 2, 3, 4} and min(sizes.values()) > 150


@pytest.mark.parametrize(("power", "least", "most"), [(0.0, 0.4, 0.6), (1.0, 0.85, 0.95), (-1.0, 0.05, 0.15)])
def test_negatives_can_be_drawn_by_how_often_they_occur(power: float, least: float, most: float) -> None:
    """Of one negative out of two, the one that occurs nine times as often: half, nine in ten, one in ten."""
    rng = np.random.default_rng(0)
    sampling = Sampling(drop_types=False, frequency_power=power)
    drawn = [sample(["a"], ["often", "rare"], sampling, rng, {"often": 9, "rare": 1})[0] for _ in range(2000)]
    assert least < sum("often" in names for names in drawn) / 2000 < most


def test_descriptions_stand_in_for_their_types() -> None:
    sampling = Sampling(drop_types=False, description_rate=0.5, descriptions={"city": "a large town"})
    rng = np.random.default_rng(0)
    drawn = [sample(["city"], ["city", "drug"], sampling, rng) for _ in range(400)]
    described = [names[places["city"]] == "a large town" for names, places in drawn]
    assert 150 < sum(described) < 250
    assert all({*names} <= {"a large town", "city", "drug"} for names, _ in drawn)


def test_a_prompt_that_does_not_fit_beside_its_text_asks_for_fewer_types(tokenizer: PromptTokenizer) -> None:
    config = dataclasses.replace(CONFIG, encoder={"model_type": "bert", "max_position_embeddings": 60})
    types = tuple(letter * 9 for letter in "pqrstuvw")  # ten sub-words each in the prompt
    example = TokenizedExample(
        words_of(tokenizer, *"abcdefghijklmno"), one_each(*((i, i, t) for i, t in enumerate(types))), types
    )
    asked = Counter[str]()
    for step in range(60):
        batch, true = training_batch([example], [0], tokenizer, [SetTypes(OWN)], config, seed=0, step=step)
        assert batch.input_ids.shape[1] <= config.max_tokens
        assert true.shape[1] == 4 == batch.type_counts[0]
        asked.update(names_in(tokenizer, batch, 0))
    assert {*asked} == {*types}
    long = dataclasses.replace(example, spans=one_each((0, 0, "y" * 60)), absent=())
    with pytest.raises(UserError, match="60 sub-words"):
        training_batch([long], [0], tokenizer, [SetTypes(OWN)], config, seed=0, step=0)


def test_the_true_spans_are_those_of_the_mentions(tokenizer: PromptTokenizer) -> None:
    config = dataclasses.replace(CONFIG, max_width=2)
    example = TokenizedExample(words_of(tokenizer, "a", "b", "c"), one_each((0, 1, "x"), (2, 2, "y")), ("x", "y"))
    batch, true = training_batch([example], [0], tokenizer, [SetTypes(OWN)], config, seed=0, step=1)
    order = names_in(tokenizer, batch, 0)
    assert true.T.tolist() == [[0, 0, 1, order.index("x")], [0, 2, 0, order.index("y")]]


def test_each_data_set_is_asked_in_its_own_way(tokenizer: PromptTokenizer) -> None:
    """By its own sampling, and of the types of its own set where a text states none as absent."""
    words = words_of(tokenizer, "a", "b")
    examples = [TokenizedExample(words, one_each((0, 0, "x")), source=i % 2) for i in range(40)]
    few = SetTypes(Sampling(negatives="own", drop_types=False, max_negatives=1), {"x": 1, "y": 1})
    levels = SetTypes(Sampling(levels=True, max_negatives=3), {"x": 1, "v": 1, "w": 1})
    batch, _ = training_batch(examples, range(40), tokenizer, [few, levels], CONFIG, seed=0, step=1)
    asked = [{*names_in(tokenizer, batch, row)} for row in range(40)]
    assert {*map(frozenset, asked[::2])} == {frozenset("x"), frozenset("xy")}
    assert set().union(*asked[1::2]) == {"x", "v", "w"}
