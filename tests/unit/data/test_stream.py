"""The sequence of batches that a run trains on: what is in it, and that it is the same however it is come by."""

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from spanlake.data.prepare import prepare
from spanlake.data.stream import ExampleStream, Pool, PoolPlan, Position, StreamBatch, open_prepared
from spanlake.errors import UserError
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.storage import locate

CONFIG = ModelConfig(
    encoder={"model_type": "bert", "max_position_embeddings": 400},
    hidden_size=8,
    span_head="paper",
    entity_token="[ENT]",
    separator_token="[SEP]",
    entity_token_id=1,
    max_width=3,
)


def prompts() -> PromptTokenizer:
    """Every ASCII letter is a sub-word."""
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[ENT]", "[SEP]", *map(chr, range(33, 127))])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[ENT]", "[SEP]"])
    return PromptTokenizer(backend, entity_token="[ENT]", separator_token="[SEP]", entity_token_id=1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sets of 1,000 and 300 texts of different length, the second with a mention that is too wide in each."""
    directory = tmp_path_factory.mktemp("stream")
    for name, rows in (("big", 1000), ("small", 300)):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(rows):
                words = [f"{name}{i}", *["word"] * (i * 7 % 23 + 3)]
                spans = [[0, 0, f"{name} type"], [1, 1, "other"]] + ([[0, 3, "wide"]] if name == "small" else [])
                file.write(json.dumps({"tokenized_text": words, "ner": spans, "negatives": ["other", "absent"]}) + "\n")
    prepare([str(directory / "big.jsonl"), str(directory / "small.jsonl")], locate(str(directory / "out")), max_width=3)
    return str(directory / "out")


def stream(uri: str, **changes: Any) -> ExampleStream:
    settings = {"weights": (1.0, 1.0), "seed": 5, "batch_tokens": 2000, "batch_texts": 16, "pool_rows": 400}
    return ExampleStream(open_prepared(locate(uri)), tokenizer=prompts(), config=CONFIG, **{**settings, **changes})


def epoch(made: ExampleStream, number: int = 0) -> list[StreamBatch]:
    batches = []
    for batch in made.batches(Position(number)):
        if batch.position.epoch > number:
            return batches
        batches.append(batch)
    raise AssertionError


def plain(batches: Iterable[StreamBatch]) -> list[list[tuple[Any, ...]]]:
    """The examples of batches in a form that compares by value."""
    return [
        [(e.words.ids.tolist(), e.words.edges.tolist(), e.spans, e.absent, e.elsewhere, e.where) for e in b.examples]
        for b in batches
    ]


def rows(batches: list[StreamBatch]) -> Counter[str]:
    return Counter(example.where for batch in batches for example in batch.examples)


def test_an_epoch_holds_every_text_once_in_batches_within_the_budget(uri: str) -> None:
    batches = epoch(stream(uri))
    found = rows(batches)
    assert len(found) == 1300 and set(found.values()) == {1}
    assert {where.partition(",")[0] for where in found} == {"big", "small"}
    for batch in batches:
        lengths = [example.tokens for example in batch.examples]
        assert lengths == sorted(lengths) and len(lengths) <= 16
        assert len(lengths) == 1 or (lengths[-1] + 64) * len(lengths) <= 2000
    order = [example.where for batch in batches for example in batch.examples]
    again = [example.where for batch in epoch(stream(uri), 1) for example in batch.examples]
    assert order != again and sorted(order) == sorted(again)
    mixed = [{example.where.partition(",")[0] for example in batch.examples} for batch in batches]
    assert sum(len(names) == 2 for names in mixed) > len(mixed) / 2


def test_the_sequence_is_the_same_each_time_and_another_for_another_seed(uri: str) -> None:
    first, second = (plain(islice(stream(uri).batches(), 150)) for _ in range(2))
    assert first == second
    assert first != plain(islice(stream(uri, seed=6).batches(), 150))


@pytest.mark.slow
def test_a_run_goes_on_from_any_batch_as_if_it_had_not_stopped(uri: str) -> None:
    """Over the edges of pools and of the epoch, from the position as a checkpoint keeps it."""
    made = stream(uri)
    whole = list(islice(made.batches(), 260))
    assert whole[-1].position.epoch > 0 and max(batch.position.pool for batch in whole) >= 2
    pools = [(batch.position.epoch, batch.position.pool) for batch in whole]
    ends = [at for at in range(255) if pools[at] != pools[at + 1]]
    for stop in (0, 1, *range(20, 256, 26), ends[0], ends[0] + 1, ends[1]):
        kept = json.loads(json.dumps(whole[stop].position.to_dict()))
        following = list(islice(made.batches(Position(**kept)), 3))
        assert plain(following) == plain(whole[stop + 1 : stop + 4])
        assert [b.position for b in following] == [b.position for b in whole[stop + 1 : stop + 4]]


@pytest.mark.slow
def test_pools_may_be_loaded_elsewhere(uri: str) -> None:
    """What reads them may be pickled, and be given all plans of an epoch at once."""
    asked = []

    def load(plans: list[PoolPlan]) -> list[Pool]:
        asked.append(len(plans))
        there = pickle.loads(pickle.dumps(stream(uri)))
        return [pickle.loads(pickle.dumps(there.load(plan))) for plan in plans]

    made = stream(uri)
    elsewhere = plain(islice(made.batches(load=load), 200))
    assert elsewhere == plain(islice(made.batches(), 200))
    assert asked[0] == len(made.plans(0)) > 1


def test_a_batch_is_read_without_reading_the_data_set(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[PoolPlan] = []
    load = ExampleStream.load
    monkeypatch.setattr(ExampleStream, "load", lambda self, plan: read.append(plan) or load(self, plan))
    made = stream(uri, pool_rows=200)
    assert len(made.plans(0)) >= 4  # of six row groups
    batches = made.batches()
    next(batches)
    assert len(read) <= 2  # its pool and the one after it
    batches.close()


def test_weights_say_how_often_a_set_is_read(uri: str) -> None:
    found = rows(epoch(stream(uri, weights=(0.25, 2.5))))
    big = Counter({where: count for where, count in found.items() if where.startswith("big")})
    small = Counter({where: count for where, count in found.items() if where.startswith("small")})
    assert set(big.values()) == {1} and 190 < len(big) < 310
    assert set(small.values()) == {2, 3} and 700 < small.total() < 800
    other = rows(epoch(stream(uri, weights=(0.25, 2.5)), 1))
    assert {where for where in other if where.startswith("big")} != {*big}  # drawn anew in each epoch


def test_held_out_rows_are_the_dev_part_and_never_trained_on(uri: str) -> None:
    made = stream(uri, held_out=50)
    trained = rows(epoch(made)) + rows(epoch(made, 1))
    for data, size in zip(made.sets, (50, 30), strict=True):  # 30: a tenth
        kept = data.held_out(50, 5)
        assert len(kept) == size and kept == data.held_out(50, 5) != data.held_out(50, 6)
        assert not {f"{data.name}, row {row + 1}" for row in kept} & {*trained}
        first_words = [example.text.split()[0] for example in data.examples(kept)]
        assert first_words == [f"{data.name}{row}" for row in sorted(kept)]
    assert len(trained) == 1300 - 80


def test_types_that_are_ignored_are_neither_mentioned_nor_negative(uri: str) -> None:
    batches = epoch(stream(uri, ignored_types=frozenset(["other", "wide"])))
    examples = [example for batch in batches for example in batch.examples]
    assert {types for example in examples for *_, types in example.spans} == {("big type",), ("small type",)}
    assert {example.absent for example in examples} == {("absent",)}


def test_sets_without_a_text_are_no_endless_search(uri: str) -> None:
    empty = ExampleStream([], (), prompts(), CONFIG, seed=0, batch_tokens=9, batch_texts=9)
    with pytest.raises(UserError, match="have no text with words"):
        next(empty.batches())


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 texts of two sentences, one of them read twice in an epoch."""
    directory = tmp_path_factory.mktemp("passages")
    text = "Ada met Bob today. London has a bridge."
    mentions = [[0, 3, ["poet", "person"]], [8, 11, ["person"]], [19, 25, ["city", "location"]]]
    row = {"text": text, "mentions": mentions, "absent": ["drug"]}
    (directory / "a.jsonl").write_text("\n".join([json.dumps(row)] * 300))
    prepare([str(directory / "a.jsonl")], locate(str(directory / "out")))
    return str(directory / "out")


@pytest.mark.slow
def test_sentences_of_a_passage_are_drawn_at_the_rate(passages: str) -> None:
    def drawn(rate: float, number: int = 0) -> list[tuple[str, int, tuple[str, ...]]]:
        made = stream(passages, weights=(2.0,), sentence_rates=(rate,))
        examples = [example for batch in epoch(made, number) for example in batch.examples]
        assert {example.absent for example in examples} == {("drug",)}
        return [(example.where, len(example.words), example.elsewhere) for example in examples]

    assert {(words, elsewhere) for _, words, elsewhere in drawn(0.0)} == {(10, ())}
    half = Counter((words, elsewhere) for _, words, elsewhere in drawn(0.5))
    assert {*half} == {(10, ()), (5, ("city", "location")), (5, ("person", "poet"))}
    assert half.total() == 600 and 240 < half[10, ()] < 360 and min(half.values()) > 100
    assert drawn(0.5) == drawn(0.5) != drawn(0.5, 1)
    sizes: dict[str, set[int]] = {}
    for where, words, _ in drawn(0.5):
        sizes.setdefault(where, set()).add(words)
    assert {10, 5} in sizes.values()  # the same text is drawn anew each time that an epoch reads it
    following = list(islice(stream(passages, weights=(2.0,), sentence_rates=(0.5,)).batches(), 30))
    resumed = stream(passages, weights=(2.0,), sentence_rates=(0.5,)).batches(following[9].position)
    assert plain(islice(resumed, 20)) == plain(following[10:])
