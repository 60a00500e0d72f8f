"""Tests the Extractor: any texts and labels give the right entities, in any batches."""

import gc
import itertools
import random
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import regex
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spanlake import Entity, Extractor, UserError
from spanlake.decoding import select
from spanlake.inference import extractor as extractor_module
from spanlake.inference.hardware import fastest_on_gpu
from spanlake.inference.scoring import Pass
from spanlake.inference.settings import Settings
from spanlake.modeling import tokens as tokens_module
from spanlake.modeling.tokens import Batch
from spanlake.package import Package, open_package
from spanlake.text import word_offsets

CPU = torch.device("cpu")
LABELS = ["person", "university", "city"]
SENTENCE = "Alain Farley works at McGill University in Montréal, Canada."
VOCABULARY = ["Ada", "met", "Charles", "Babbage", "in", "London", ".", "radium", ",", "the", "union", "xyz", "!", "q7"]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def prose(words: int, seed: int) -> str:
    """Returns random words and punctuation, with some line breaks."""
    chosen = random.Random(seed)
    return "".join(chosen.choice(VOCABULARY) + chosen.choice("     \n") for _ in range(words))


def assert_same(found: list[list[Entity]], expected: list[list[Entity]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert [replace(entity, score=0.0) for entity in one] == [replace(entity, score=0.0) for entity in other]
        assert [entity.score for entity in one] == pytest.approx([entity.score for entity in other], abs=1e-5)


# --- a model whose scores are known -----------------------------------------------------------------------------------


class SpanFormula(torch.nn.Module):
    """Replaces the model by a formula.

    A span's logit depends only on its first and last word, its width and the label, so a test can compute it without
    windows, groups and batches. Spans past the end of the text score highest, so a test notices them.
    """

    def forward(self, batch: Batch) -> torch.Tensor:
        words = batch.input_ids.gather(1, batch.word_positions)
        types = batch.input_ids.gather(1, batch.type_positions + 1)
        count = words.shape[1]
        logits = torch.full((len(words), count, 4, types.shape[1]), 50.0)
        for row, real in enumerate(batch.word_counts):
            for k in range(min(4, real)):
                start, end = words[row, : real - k, None], words[row, k:real, None]
                logits[row, : real - k, k] = self.logit(start, end, k, types[row])
        return logits

    @staticmethod
    def logit(start: torch.Tensor, end: torch.Tensor, k: int, label: torch.Tensor) -> torch.Tensor:
        return (4 * torch.sin(12.9898 * start + 78.233 * end + 37.719 * k + 4.137 * label.double())).float()


@pytest.fixture(scope="module")
def formula(tiny: Extractor) -> Extractor:
    extractor = Extractor(tiny.package, CPU, torch.float32, batch_tokens=500)
    extractor.scorer._model = SpanFormula()  # type: ignore[assignment]
    return extractor


def every_span(extractor: Extractor, text: str, names: list[str]) -> Iterator[tuple[int, int, int, float]]:
    """Yields the first and last word, label and score of every span of at most 4 words that the tokenizer sees."""
    words = extractor.package.tokenizer.words(text.split())
    first_ids = words.ids[words.edges[:-1]].tolist()
    label_ids = torch.tensor([extractor.package.tokenizer.label(name)[0] for name in names])
    for start in range(len(first_ids)):
        for k in range(min(4, len(first_ids) - start)):
            ends = torch.tensor(first_ids[start]), torch.tensor(first_ids[start + k])
            for label, score in enumerate(torch.sigmoid(SpanFormula.logit(*ends, k, label_ids)).tolist()):
                yield start, start + k, label, score


def whole(extractor: Extractor, text: str, asked: Settings) -> list[Entity]:
    """Returns the entities of a text, chosen among all its spans at once."""
    offsets = word_offsets(text)
    spans = [span for span in every_span(extractor, text, list(asked.names)) if span[3] > asked.thresholds[span[2]]]
    start, end, label = (np.array([span[i] for span in spans], dtype=np.int64) for i in range(3))
    score = np.array([span[3] for span in spans])
    chosen = select(start, end, label, score, nested=asked.nested, multi_label=asked.multi_label)
    found = []
    for i in chosen.tolist():
        begin, stop = int(offsets[start[i], 0]), int(offsets[end[i], 1])
        found.append(Entity(begin, stop, text[begin:stop], asked.names[label[i]], score[i]))
    return found


WORDS = [
    "ada",
    "alain",
    "and",
    "at",
    "babbage",
    "by",
    "canada",
    "charles",
    "curie",
    "european",
    "farley",
    "fell",
    "for",
]
WORDS += ["found", "geneva", "in", "june", "knew"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from([*WORDS, ".", "!", "xyzxyz"]), max_size=180),
    names=st.lists(st.sampled_from(WORDS), min_size=1, max_size=16, unique=True),
    threshold=st.sampled_from([0.5, 0.9, 0.97]),
    nested=st.booleans(),
    multi_label=st.booleans(),
)
def test_windows_and_label_groups_change_nothing(
    formula: Extractor, words: list[str], names: list[str], threshold: float, nested: bool, multi_label: bool
):
    text = " ".join(words)
    asked = Settings.make(names, threshold, nested, multi_label)
    assert_same(list(formula.stream([(text, asked)])), [whole(formula, text, asked)])


def test_every_span_is_scored_once_for_every_label(formula: Extractor):
    texts = [" ".join(random.Random(seed).choices([*WORDS, "."], k=size)) for seed, size in enumerate((0, 1, 47, 300))]
    asked = Settings.make(WORDS[:14], 0.0)
    scored: Counter[tuple[int, int, int, int]] = Counter()
    for step in formula._plan((text, asked) for text in texts):
        if isinstance(step, Pass):
            found = formula.scorer.submit(step).result()
            columns = (found.text.tolist(), found.start.tolist(), found.end.tolist(), found.label.tolist())
            scored.update(zip(*columns, strict=True))
    expected = {
        (index, *span[:3]) for index, text in enumerate(texts) for span in every_span(formula, text, WORDS[:14])
    }
    assert set(scored.values()) == {1}
    assert scored.keys() == expected


def test_thresholds_belong_to_their_labels_across_groups(formula: Extractor):
    text = " ".join(random.Random(0).choices(WORDS, k=100))
    thresholds = [0.5 + 0.03 * i for i in range(16)]
    asked = Settings.make(WORDS[:16], thresholds, multi_label=True)
    assert_same(list(formula.stream([(text, asked)])), [whole(formula, text, asked)])


class AdaAlone(torch.nn.Module):
    """Gives a high score to the word "Ada" alone, and a low score to every other span."""

    def __init__(self, ada: int) -> None:
        super().__init__()
        self.ada = ada

    def forward(self, batch: Batch) -> torch.Tensor:
        words = batch.input_ids.gather(1, batch.word_positions)
        logits = torch.full((*words.shape, 4, batch.type_positions.shape[1]), -9.0)
        logits[:, :, 0, 0] = torch.where(words == self.ada, 9.0, -9.0)
        return logits


@pytest.mark.slow
def test_a_document_of_five_megabytes_is_read_whole_in_bounded_memory(tiny: Extractor):
    wide = replace(tiny.package.config, encoder={**tiny.package.config.encoder, "max_position_embeddings": 512})
    wide = replace(wide, max_words=384)
    package = Package("wide", tiny.package.model, tiny.package.tokenizer, {}, "")
    extractor = Extractor(package, CPU, torch.float32)
    model = AdaAlone(tiny.package.tokenizer.label("Ada")[0])
    model.config = wide  # type: ignore[assignment]
    package.model = extractor.scorer._model = model  # type: ignore[assignment]
    sentence = "In June the Union met Ada, and 12 prices fell by a percent. "
    text = sentence * (5_000_000 // len(sentence))
    names = [f"label {i}" for i in range(8)]  # two groups, so the document is read twice
    tracemalloc.start()
    try:
        [found] = extractor.extract([text], names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expected = [i * len(sentence) + sentence.index("Ada") for i in range(5_000_000 // len(sentence))]
    of_first = [entity.start for entity in found if entity.label == "label 0"]
    assert of_first == expected
    assert peak < 60 * len(text)


# --- entities and texts -----------------------------------------------------------------------------------------------

ODD = "a Z9 .,!?-_'…。\u200b\u200d\ufeff\u0301\u05d0\u0634\u202e😀👩🏽\x00\x07\x1c\x85\n\r\t\ud800\udfff\ufffd中文ßİ"


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.text(st.sampled_from(ODD), max_size=200), st.text(max_size=60)), max_size=4))
@example(["a \u0e33 b"])
def test_entities_are_pieces_of_the_text_as_given(tiny: Extractor, texts: list[str]):
    found = tiny.extract(texts, LABELS, threshold=0.3)
    assert len(found) == len(texts)
    for text, entities in zip(texts, found, strict=True):
        for entity in entities:
            assert text[entity.start : entity.end] == entity.text
            characters = regex.findall(r"\X", entity.text)
            # A space with a combining mark is one character.
            assert characters[0].strip() and characters[-1].strip()
            assert entity.label in LABELS and 0.3 < entity.score <= 1
        for before, after in itertools.pairwise(entities):
            assert before.end <= after.start


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003", "\u200b", "\ud800", "\x00"])
def test_a_text_without_words_has_no_entities(tiny: Extractor, text: str):
    assert tiny.extract([text, SENTENCE, text], LABELS, threshold=0)[::2] == [[], []]


def test_invisible_characters_only_shift_the_entities(tiny: Extractor):
    [plain] = tiny.extract([SENTENCE], LABELS)
    [moved] = tiny.extract(["\u200b \ud800" + SENTENCE], LABELS)
    assert plain
    assert_same([[replace(entity, start=entity.start - 3, end=entity.end - 3) for entity in moved]], [plain])
    [parted] = tiny.extract([SENTENCE.replace(" ", " \u200b ")], LABELS)
    assert [entity.text.replace("\u200b ", "") for entity in parted] == [entity.text for entity in plain]


def test_a_word_longer_than_a_window_is_read(tiny: Extractor):
    text = f"Ada met {'x' * 95} and {'y' * 300_000} in London."
    [found] = tiny.extract([text], LABELS, threshold=0)
    assert "".join(entity.text.replace(" ", "") for entity in found) == text.replace(" ", "")


def test_prompt_tokens_in_a_text_are_read_as_text(tiny: Extractor):
    text = "[SEP] Ada <<ENT>> met <<SEP>> Babbage [CLS]"
    [found] = tiny.extract([text], LABELS, threshold=0)
    assert "".join(entity.text.replace(" ", "") for entity in found) == text.replace(" ", "")


def test_long_documents_have_no_duplicates_and_no_overlaps(tiny: Extractor):
    text = prose(1000, seed=3)
    [flat] = tiny.extract([text], LABELS, threshold=0.3)
    assert len(flat) > 100
    assert all(before.end <= after.start for before, after in itertools.pairwise(flat))
    [every] = tiny.extract([text], LABELS, threshold=0.3, nested=True, multi_label=True)
    places = [(entity.start, entity.end, entity.label) for entity in every]
    assert len(set(places)) == len(places) > len(flat)


# --- batches, threads, devices ----------------------------------------------------------------------------------------


def test_batches_change_nothing(tiny: Extractor):
    texts = [prose(words, seed=words) for words in (1, 2, 5, 0, 9, 30, 47, 48, 49, 120, 3, 8, 77, 16)]
    alone = [tiny.extract([text], LABELS)[0] for text in texts]
    assert sum(map(len, alone)) > 50
    assert_same(tiny.extract(texts, LABELS), alone)
    assert_same(tiny.extract(texts[::-1], LABELS)[::-1], alone)
    for batch_tokens in (1, 200):
        assert_same(Extractor(tiny.package, CPU, torch.float32, batch_tokens).extract(texts, LABELS), alone)


def test_chunks_change_nothing(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    texts = [prose(20, seed) for seed in range(12)]
    expected = tiny.extract(texts, LABELS)
    monkeypatch.setattr(extractor_module, "_CHUNK_TEXTS", 5)
    assert_same(tiny.extract(texts, LABELS), expected)
    monkeypatch.setattr(extractor_module, "_CHUNK_CHARACTERS", 1)
    assert_same(tiny.extract(texts, LABELS), expected)


def test_lanes_change_nothing(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extractor_module, "_CHUNK_TEXTS", 11)
    texts = [prose(words % 60, seed=words) for words in range(70)]
    one, several = (Extractor(tiny.package, CPU, torch.float32, 100, threads) for threads in (1, 5))
    asked = Settings.make(LABELS)
    tokens: dict[int, list[int]] = {1: [], 5: []}
    expected = list(one.stream([(text, asked) for text in texts], tokens[1].append))
    assert_same(list(several.stream([(text, asked) for text in texts], tokens[5].append)), expected)
    assert sum(tokens[5]) == sum(tokens[1])
    assert len(tokens[5]) > len(tokens[1])  # the lanes share a chunk


def test_each_lane_runs_a_pass_at_the_same_time_on_one_core(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    extractor = Extractor(tiny.package, CPU, torch.float32, threads=3)
    together = threading.Barrier(3)
    forward = extractor.scorer._forward

    def meet(rows: list[Any], batch: Batch) -> Any:
        together.wait(30)
        assert torch.get_num_threads() == 1
        return forward(rows, batch)

    monkeypatch.setattr(extractor.scorer, "_forward", meet)
    assert sum(map(len, extractor.extract([SENTENCE] * 3, LABELS))) > 0


def test_torch_keeps_its_number_of_threads(tiny: Extractor):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Extractor(tiny.package, CPU, torch.float32, threads=2).extract([SENTENCE], LABELS)
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_closed_stream_starts_no_more_passes(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    extractor = Extractor(tiny.package, CPU, torch.float32, batch_tokens=1, threads=1)
    forward, passes = extractor.scorer._forward, []

    def count(rows: list[Any], batch: Batch) -> Any:
        passes.append(rows)
        return forward(rows, batch)

    monkeypatch.setattr(extractor.scorer, "_forward", count)
    monkeypatch.setattr(extractor_module, "_CHUNK_TEXTS", 1)
    found = extractor.stream((SENTENCE, Settings.make(LABELS)) for _ in range(1000))
    next(found)
    found.close()
    extractor.scorer._lanes.submit(int).result(30)  # runs after all passes that were submitted
    assert 1 <= len(passes) < 10


def test_threads_share_an_extractor(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens_module, "_CACHED_WORDS", 10)  # so that the cache is replaced all the time
    texts = [[prose(40, seed) + f" word{seed}" for seed in range(part, part + 6)] for part in range(8)]
    expected = [tiny.extract(part, LABELS) for part in texts]
    barrier = threading.Barrier(8)

    def extract(part: int) -> list[list[list[Entity]]]:
        barrier.wait()
        return [tiny.extract(texts[part], LABELS) for _ in range(3)]

    with ThreadPoolExecutor(8) as threads:
        for part, results in enumerate(threads.map(extract, range(8))):
            for found in results:
                assert_same(found, expected[part])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_nearly_the_same(tiny: Extractor, tiny_model_dir: Path, precision: str):
    half = Extractor.load(str(tiny_model_dir), device="cpu", precision=precision)
    assert half.precision == getattr(torch, precision)
    texts = [prose(30, seed) for seed in range(20)]
    asked = {"nested": True, "multi_label": True}
    sure = [places(found) for found in tiny.extract(texts, LABELS, threshold=0.65, **asked)]
    likely = [places(found) for found in half.extract(texts, LABELS, threshold=0.5, **asked)]
    assert sum(map(len, sure)) > 100
    agreed = sum(len(one & other) for one, other in zip(sure, likely, strict=True))
    assert agreed > 0.9 * sum(map(len, sure))


def test_a_model_that_float16_cannot_hold_is_refused(tiny_model_dir: Path):
    package = open_package(str(tiny_model_dir))
    with torch.no_grad():
        package.model.spans.out.weight.mul_(1e5)
    extractor = Extractor(package, CPU, torch.float16)
    with pytest.raises(UserError, match="exceed what float16 holds; load it with precision float32 or bfloat16"):
        extractor.extract([SENTENCE], LABELS)


def test_a_card_computes_in_what_it_multiplies_fast():
    cards = {"P100": (6, 0), "V100": (7, 0), "T4": (7, 5), "A100": (8, 0), "H100": (9, 0)}
    chosen = {name: str(fastest_on_gpu(capability)) for name, capability in cards.items()}
    assert chosen == {
        "P100": "torch.float32",
        "V100": "torch.float16",
        "T4": "torch.float16",
        "A100": "torch.bfloat16",
        "H100": "torch.bfloat16",
    }


def places(entities: list[Entity]) -> set[tuple[int, int, str]]:
    return {(entity.start, entity.end, entity.label) for entity in entities}


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_closed_extractor_frees_its_model_at_once(tiny_model_dir: Path):
    """In a fresh process: one that has trained keeps what it frees, to use it again."""
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        processes.submit(close_and_measure, tiny_model_dir).result()


def close_and_measure(model_dir: Path) -> None:
    package = open_package(str(model_dir))
    with torch.no_grad():
        package.model.ballast = torch.nn.Parameter(torch.ones(25_000_000))  # 100 MB
    with Extractor(package, CPU, torch.float32) as extractor:
        assert extractor.extract([SENTENCE] * 9, LABELS, threshold=0.1)[0]
        model = weakref.ref(package.model)
        del package
        assert model() is not None
        before = psutil.Process().memory_info().rss
    assert model() is None  # although the Extractor still exists
    freed = before - psutil.Process().memory_info().rss
    assert freed > 90_000_000, freed
    with pytest.raises(UserError, match="closed"):
        extractor.extract([SENTENCE], LABELS)
    extractor.close()  # a second call does nothing


def test_closing_waits_for_the_passes_that_run(tiny_model_dir: Path):
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32", threads=1)
    [(_, rows)] = extractor.plan([(0, SENTENCE, Settings.make(LABELS, 0.1))])
    futures = [extractor.scorer.submit(extractor.scorer.prepare(rows)) for _ in range(5)]
    extractor.close()
    assert all(future.done() and len(future.result().score) for future in futures)
    with pytest.raises(UserError, match="closed"):
        extractor.scorer.submit(Pass([], cast(Batch, None)))


def test_an_unreferenced_extractor_frees_its_model(tiny_model_dir: Path):
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    extractor.extract([SENTENCE], LABELS)
    model = weakref.ref(extractor.package.model)
    gc.disable()
    try:
        del extractor
        assert model() is None
    finally:
        gc.enable()


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_reads_a_bounded_way_ahead(tiny: Extractor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extractor_module, "_CHUNK_TEXTS", 8)
    asked = Settings.make(LABELS)
    read = 0

    def endless() -> Iterator[tuple[str, Settings]]:
        nonlocal read
        for seed in itertools.count():
            read += 1
            yield prose(5, seed), asked

    stream = tiny.stream(endless())
    taken = list(itertools.islice(stream, 20))
    stream.close()  # type: ignore[attr-defined]
    at_close = read
    assert_same(taken, tiny.extract([prose(5, seed) for seed in range(20)], LABELS))
    assert 20 <= read <= 20 + 8 * (extractor_module._STEPS_AHEAD + 2)
    assert read == at_close
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spanlake-plan")]


def test_an_error_in_the_requests_reaches_the_caller(tiny: Extractor):
    def broken() -> Iterator[tuple[str, Settings]]:
        yield SENTENCE, Settings.make(LABELS)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(tiny.stream(broken()))


# --- labels and thresholds --------------------------------------------------------------------------------------------


def test_five_hundred_labels(tiny: Extractor):
    names = [f"kind {i}" for i in range(500)]
    [found] = tiny.extract([SENTENCE], names, threshold=0.5, multi_label=True)
    assert {entity.label for entity in found} <= set(names)
    assert len({entity.label for entity in found}) > 100
    [reverse] = tiny.extract([SENTENCE], names[::-1], threshold=0.0)
    assert reverse


def test_a_label_that_is_too_long_is_refused(tiny: Extractor):
    label = " ".join(["university"] * 200)
    with pytest.raises(
        UserError, match=r"'university university.* has 200 sub-words.* at most \d+, so shorten"
    ) as caught:
        tiny.extract([SENTENCE], ["person", label])
    assert len(str(caught.value)) < 250


def test_a_long_label_that_fits_is_read(tiny: Extractor):
    label = " ".join(["university"] * 60)
    [found] = tiny.extract([prose(200, seed=1)], ["person", label], threshold=0.3)
    assert label in {entity.label for entity in found}


def test_a_label_given_twice_counts_once(tiny: Extractor):
    once = tiny.extract([SENTENCE], ["person", "city"])
    assert tiny.extract([SENTENCE], ["person", "city", "person"]) == once
    assert tiny.extract([SENTENCE], ["person", "city", "person"], threshold=[0.5, 0.5, 0.5]) == once


def test_labels_per_text(tiny: Extractor):
    texts = [prose(30, 0), prose(25, 1), prose(10, 2)]
    lists: list[Any] = [["person"], ("city", "university"), {"date": "a day in June"}]
    expected = [tiny.extract([text], labels)[0] for text, labels in zip(texts, lists, strict=True)]
    assert_same(tiny.extract(texts, lists), expected)
    assert {entity.label for found in expected for entity in found} > {"person"}


def test_the_model_reads_descriptions_and_entities_carry_names(tiny: Extractor):
    text = prose(60, seed=5)
    described = tiny.extract([text], {"A": "person", "B": "city"})
    plain = tiny.extract([text], ["person", "city"])
    assert plain[0]
    back = {"person": "A", "city": "B"}
    assert described == [[replace(entity, label=back[entity.label]) for entity in plain[0]]]


def test_one_threshold_per_label(tiny: Extractor):
    text = prose(100, seed=0)
    [found] = tiny.extract([text], LABELS, threshold=[0.4, 1.0, 0.6])
    assert {entity.label for entity in found} == {"person", "city"}
    limits = dict(zip(LABELS, (0.4, 1.0, 0.6), strict=True))
    assert all(entity.score > limits[entity.label] for entity in found)
    assert any(entity.score < 0.6 for entity in found)
    shuffled = {"city": 0.6, "person": 0.4, "university": 1}
    assert tiny.extract([text], LABELS, threshold=shuffled) == [found]


def test_thresholds_of_0_and_of_1(tiny: Extractor):
    [every] = tiny.extract([SENTENCE], LABELS, threshold=0)
    assert "".join(entity.text.replace(" ", "") for entity in every) == SENTENCE.replace(" ", "")
    assert tiny.extract([SENTENCE], LABELS, threshold=1) == [[]]
    assert tiny.extract([SENTENCE], LABELS, threshold=np.float32(0.5)) == tiny.extract([SENTENCE], LABELS)


def test_nested_entities_never_cross(tiny: Extractor):
    [found] = tiny.extract([prose(80, seed=7)], LABELS, threshold=0.3, nested=True)
    pairs = [(a, b) for a, b in itertools.combinations(found, 2) if a.start < b.end and b.start < a.end]
    assert pairs
    for a, b in pairs:
        assert (a.start, a.end) != (b.start, b.end)
        assert (a.start <= b.start and b.end <= a.end) or (b.start <= a.start and a.end <= b.end)


def test_several_labels_for_one_span(tiny: Extractor):
    [found] = tiny.extract([prose(80, seed=8)], LABELS, threshold=0.3, multi_label=True)
    spans = Counter((entity.start, entity.end) for entity in found)
    assert max(spans.values()) > 1
    assert max(Counter(map(repr, found)).values()) == 1


def test_no_texts_give_no_entities(tiny: Extractor):
    assert tiny.extract([], LABELS) == []
    assert tiny.extract((), LABELS) == []


# --- wrong calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("person", "'person'"),
        (b"person", "b'person'"),
        ([], "no labels"),
        ({}, "no labels"),
        (None, "None"),
        (7, "7"),
        ({"person"}, "{'person'}"),
        ([""], "''"),
        (["person", " \n"], r"' \\n'"),
        (["person", None], "None"),
        ([1, 2], "1"),
        ({"P": ""}, "''"),
        ({"P": None}, "None"),
        ({3: "person"}, "3"),
        ([["person"], ["city"]], "2 label lists for 1 texts"),
        ([["person", 5]], "5"),
        (["\u200b"], r"'\\u200b'"),
        (["<<ENT>>"], "'<<ENT>>'"),
        (["[SEP]"], r"'\[SEP\]'"),
        (["a [CLS] in a name"], r"'\[CLS\]'"),
        ({"P": "before <<SEP>> after"}, "'<<SEP>>'"),
        (["[FLERT]"], r"'\[FLERT\]'"),
    ],
)
def test_wrong_labels_are_named(tiny: Extractor, labels: Any, says: str):
    with pytest.raises(UserError, match=says) as caught:
        tiny.extract([SENTENCE], labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("threshold", "says"),
    [
        (1.5, "1.5"),
        (-0.1, "-0.1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (10**400, "1000"),
        (True, "True"),
        ("0.5", "'0.5'"),
        ([0.5], "1 thresholds for 3 labels"),
        ([0.5, 0.5, "x"], "'x'"),
        ({"person": 0.5}, "'university'"),
        ({"person": 0.5, "city": 0.5, "university": 0.5, "dog": 0.5}, "'dog'"),
    ],
)
def test_wrong_thresholds_are_named(tiny: Extractor, threshold: Any, says: str):
    with pytest.raises(UserError, match=says):
        tiny.extract([SENTENCE], LABELS, threshold=threshold)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (SENTENCE, "'Alain Farley"),
        (b"bytes", "b'bytes'"),
        (None, "None"),
        (5, "5"),
        ([SENTENCE, None], "Text 1 is None"),
        ([b"bytes"], "Text 0 is b'bytes'"),
        ([[SENTENCE]], "Text 0 is"),
    ],
)
def test_wrong_texts_are_named(tiny: Extractor, texts: Any, says: str):
    with pytest.raises(UserError, match=says) as caught:
        tiny.extract(texts, LABELS)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"device": "gpu"}, "'gpu'"),
        ({"device": "mps"}, "'mps'"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"device": None}, "None"),
        ({"precision": "float64"}, "'float64'"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_options_are_named(tiny_model_dir: Path, option: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        Extractor.load(str(tiny_model_dir), **option)
