"""What only a GPU can show: its kernels, its memory, its streams, and two processes at once."""

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pyarrow.parquet as pq
import pytest
import torch
from commands import ROOT
from transformers import DebertaV2Config, DebertaV2Model

from spanlake import Entity, Extractor
from spanlake.inference.accelerator import AcceleratorScorer
from spanlake.inference.settings import Settings
from spanlake.modeling.deberta import use_lean_attention
from spanlake.modeling.found import Found, Scale, Wanted, find_spans
from spanlake.modeling.span_head import SpanHead
from spanlake.package import open_package
from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

CUDA = torch.device("cuda")
LABELS = ["person", "organization", "location", "film", "award", "date"]


def passages(count: int = 150) -> list[str]:
    return pq.read_table(ROOT / "examples" / "passages.parquet", columns=["text"]).column("text").to_pylist()[:count]


def places(found: list[list[Entity]]) -> set[tuple[int, int, int, str]]:
    return {(at, entity.start, entity.end, entity.label) for at, text in enumerate(found) for entity in text}


def read(found: Found) -> dict[int, float]:
    count = int(found.header[0])
    return dict(zip(found.places[:count].tolist(), found.scores[:count].tolist(), strict=True))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", ["paper", "marker_v0", "marker"])
@pytest.mark.parametrize("types", [3, 25, 100])
@torch.inference_mode()
def test_the_kernel_of_span_scores_equals_pytorch(kind: str, types: int, dtype: torch.dtype, close: float):
    from spanlake.modeling.kernels.span_scores import find_spans as kernel

    torch.manual_seed(3)
    head = SpanHead(kind, 96, 12, dropout=0.0).to(CUDA, dtype).eval()
    words, kinds = torch.randn(5, 77, 96).to(CUDA, dtype), 3 * torch.randn(5, types, 96).to(CUDA, dtype)
    wanted = Wanted(torch.tensor([(0, 0, 1000, 77 - 9 * i) for i in range(5)]), torch.full((5, types), 0.5)).to(CUDA)
    one, other = (read(find(head, words, kinds, wanted, Scale(), 500_000)) for find in (find_spans, kernel))
    assert len(one) > 100
    assert len(one.keys() & other.keys()) > (0.99 if dtype == torch.float32 else 0.9) * len(one.keys() | other.keys())
    assert max(abs(one[place] - other[place]) for place in one.keys() & other.keys()) < close


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-3), (torch.float16, 0.05), (torch.bfloat16, 0.2)])
@torch.inference_mode()
def test_the_kernel_of_attention_equals_transformers(
    dtype: torch.dtype, close: float, caplog: pytest.LogCaptureFixture
):
    torch.manual_seed(5)
    config = DebertaV2Config(
        vocab_size=100, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
    )  # fmt: skip
    theirs = DebertaV2Model(config).eval().to(CUDA, dtype)
    ours = copy.deepcopy(theirs)
    use_lean_attention(ours)
    ids = torch.randint(1, 100, (4, 300), device=CUDA)
    mask = (torch.arange(300, device=CUDA) < torch.tensor([[300], [170], [64], [1]], device=CUDA)).long()
    one, other = (each(input_ids=ids, attention_mask=mask).last_hidden_state for each in (ours, theirs))
    assert not caplog.messages  # nothing took the kernel's place
    assert (one - other)[mask.bool()].abs().max() < close


def test_entities_of_mini_equal_those_of_the_cpu():
    texts = passages()
    expected = Extractor.load("mini", device="cpu", precision="float32").extract(texts, LABELS)
    single = Extractor.load("mini", device="cuda", precision="float32").extract(texts, LABELS)
    assert len(places(single) ^ places(expected)) <= 0.002 * len(places(expected))  # scores within rounding
    half = Extractor.load("mini", device="cuda").extract(texts, LABELS)
    assert len(places(half) ^ places(expected)) <= 0.03 * len(places(expected))


def test_a_pass_begins_without_waiting_for_the_device():
    extractor = Extractor.load("mini", device="cuda")
    assert isinstance(extractor.scorer, AcceleratorScorer)
    [(_, rows)] = extractor.plan([(0, passages(1)[0], Settings.make(LABELS))])
    extractor.extract(passages(20), LABELS)  # compiles the kernels
    work = extractor.scorer.prepare(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        reads = extractor.scorer._begin(work)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads[0]().score)


def test_passes_that_do_not_fit_are_halved():
    texts = [" ".join(passages(40))] * 3
    expected = Extractor.load("mini", device="cuda", precision="float32").extract(texts, LABELS)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    extractor = Extractor.load("mini", device="cuda", precision="float32", batch_tokens=2_000_000)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        found = extractor.extract(texts, LABELS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert places(found) == places(expected)


def test_training_steps_in_bfloat16_lower_the_loss():
    package = open_package("mini")
    model = package.model.to(CUDA).train()
    extractor = Extractor(open_package("mini"), torch.device("cpu"), torch.float32)
    plans = extractor.plan([(0, text, Settings.make(LABELS)) for text in passages(8)])
    rows = [row for _, rows in plans for row in rows]
    batch = extractor.scorer.prepare(rows).batch.to(CUDA)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    true = torch.tensor([(row, word, 0, 0) for row in range(len(rows)) for word in (0, 2)], device=CUDA).T
    losses = []
    for _ in range(8):
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(batch)
        loss = span_loss(logits, true, batch.word_counts, batch.type_counts, OptimSection())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def find(texts: list[str]) -> set[tuple[int, int, int, str]]:
    return places(Extractor.load("mini", device="cuda", precision="float32").extract(texts, LABELS))


def test_two_processes_share_one_card():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        one, other = pool.map(find, [passages(60)] * 2)
    assert one == other
    assert one
