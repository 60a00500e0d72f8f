"""Readers, the placing of mentions on words, the sampling of types, and the planning of batches."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from spanlake.data.batches import TokenizedExample, Unusable, plan_epoch, tokenize, training_batch
from spanlake.data.examples import Example, Mention, read_sentences, read_word_lists
from spanlake.data.sampling import Sampling, sample_types
from spanlake.errors import UserError
from spanlake.modeling.tokens import PromptTokenizer


@pytest.fixture
def tokenizer() -> PromptTokenizer:
    """Every ASCII letter is a sub-word, so counts are easy to follow."""
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[ENT]", "[SEP]", *map(chr, range(33, 127))])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[ENT]", "[SEP]"])
    return PromptTokenizer(backend, entity_token="[ENT]", separator_token="[SEP]", entity_token_id=1)


def write(path: Path, *lines: str) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    return path


def test_word_lists_become_texts_with_character_offsets(tmp_path: Path) -> None:
    record = {"tokenized_text": ["Ada", "met", "New", "York"], "ner": [[0, 0, "person"], [2, 3, "city"]]}
    (example,) = read_word_lists(write(tmp_path / "a.jsonl.gz", json.dumps(record)))
    assert example.text == "Ada met New York"
    assert [(example.text[m.start : m.end], m.label) for m in example.mentions] == [
        ("Ada", "person"),
        ("New York", "city"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"tokenized_text": ["a"]}',
        '{"tokenized_text": ["a"], "ner": [[0, 1, "x"]]}',
        '{"tokenized_text": ["a"], "ner": [[0]]}',
        '{"tokenized_text": [3], "ner": []}',
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl.gz", '{"tokenized_text": ["a"], "ner": []}', line)
    with pytest.raises(UserError, match=rf"Line 2 of .*{path.name}"):
        list(read_word_lists(path))


def test_sentences_name_the_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text('[{"sentence": "a", "entities": []}, {"sentence": "b"}]')
    with pytest.raises(UserError, match="Record 1 of"):
        read_sentences(path)


def test_mentions_that_training_cannot_use_are_counted(tokenizer: PromptTokenizer) -> None:
    text = "one two three four"
    mentions = (
        Mention(0, 3, "kept"),
        Mention(0, 18, "wide"),  # four words
        Mention(1, 7, "inside"),  # begins within "one"
    )
    unusable = Unusable()
    examples = tokenize([Example(text, mentions)], ["kept"], tokenizer, max_width=3, max_tokens=99, unusable=unusable)
    assert examples[0].spans == ((0, 0, "kept"),)
    assert (unusable.wider_than_max_width, unusable.inside_a_word, unusable.texts_too_long) == (1, 1, 0)
    assert not tokenize([Example(text, ())], [], tokenizer, max_width=3, max_tokens=5, unusable=unusable)
    assert unusable.texts_too_long == 1


def test_own_types_are_placed_and_negatives_come_from_the_inventory() -> None:
    sampling = Sampling(max_types=6, max_negatives=3)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        names, places = sample_types(["drug", "ship", "drug"], ["drug", "ship", "a", "b", "c", "d"], sampling, rng)
        assert {names[place] for place in places.values()} == {"drug", "ship"} == set(places)
        assert len(set(names)) == len(names) <= 5
        seen.update(names)
    assert seen == {"drug", "ship", "a", "b", "c", "d"}


def test_a_text_without_mentions_is_still_asked_for_something() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        names, places = sample_types([], ["a", "b"], Sampling(max_negatives=2), rng)
        assert names and not places


def test_a_broader_type_stands_in_for_all_below_it() -> None:
    broader = {"poet": "writer", "writer": "person", "singer": "person"}
    sampling = Sampling(max_negatives=5, broader_rate=0.5, broader=broader)
    rng = np.random.default_rng(0)
    asked = Counter[str]()
    for _ in range(400):
        names, places = sample_types(["poet"], ["poet", "writer", "person", "city"], sampling, rng)
        (place,) = places.values()
        asked[names[place]] += 1
        narrower = {"poet": set(), "writer": {"poet"}, "person": {"poet", "writer"}}[names[place]]
        assert not narrower & set(names)
    assert 150 < asked["poet"] < 250 and min(asked["writer"], asked["person"]) > 60


def test_what_is_broader_than_the_type_asked_for_is_a_negative() -> None:
    sampling = Sampling(max_negatives=0, above_rate=1.0, broader={"poet": "writer", "writer": "person"})
    names, places = sample_types(["poet"], ["poet", "person"], sampling, np.random.default_rng(0))
    assert set(names) == {"poet", "writer", "person"} and places == {"poet": names.index("poet")}
    never = Sampling(max_negatives=9, above_rate=0.0, broader=sampling.broader)
    names, _ = sample_types(["poet"], ["poet", "person"], never, np.random.default_rng(0))
    assert names == ["poet"]


def test_synonyms_rename_but_never_collide() -> None:
    sampling = Sampling(max_negatives=2, synonym_rate=1.0, synonyms={"city": ["town"], "village": ["town"]})
    rng = np.random.default_rng(0)
    for _ in range(100):
        names, places = sample_types(["city", "village"], ["city", "village"], sampling, rng)
        assert len(set(names)) == 2 and "town" in names
        assert places["city"] != places["village"]


def test_own_types_beyond_the_limit_are_left_out_of_the_targets_too() -> None:
    own = [f"t{i}" for i in range(30)]
    names, places = sample_types(own, own, Sampling(max_types=25), np.random.default_rng(0))
    assert len(names) == 25 and len(places) == 25


def test_an_epoch_holds_every_example_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, size=5000).tolist()
    batches = list(plan_epoch(lengths, 2048, 64, np.random.default_rng(1)))
    assert sorted(i for batch in batches for i in batch) == list(range(5000))
    assert all(len(b) <= 64 and (len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 2048) for b in batches)
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded < 1.1 * sum(lengths)


def test_the_same_seed_gives_the_same_batches(tokenizer: PromptTokenizer) -> None:
    words = (tokenizer.words(["abc"])[0], tokenizer.words(["de"])[0])
    examples = [TokenizedExample(words, ((0, 1, "x"),), ("x", "y", "z"))] * 4

    def batch(seed: int) -> list[list[int]]:
        made, _ = training_batch(
            examples, tokenizer, Sampling(), max_width=3, pad_id=0, rng=np.random.default_rng((7, seed))
        )
        return made.input_ids.tolist()

    assert batch(1) == batch(1) != batch(2)


def test_targets_stand_where_the_mentions_are(tokenizer: PromptTokenizer) -> None:
    words = tuple(tokenizer.words(["a", "b", "c"]))
    example = TokenizedExample(words, ((0, 1, "x"), (2, 2, "y")), ("x", "y"))
    batch, targets = training_batch(
        [example], tokenizer, Sampling(max_negatives=0), max_width=2, pad_id=0, rng=np.random.default_rng(0)
    )
    assert targets.shape == (1, 3, 2, 2) and targets.sum() == 2
    order = [batch.input_ids[0, p + 1].item() for p in batch.type_positions[0].tolist()]
    x, y = (order.index(tokenizer.label(name)[0]) for name in ("x", "y"))
    assert targets[0, 0, 1, x] == 1 and targets[0, 2, 0, y] == 1
