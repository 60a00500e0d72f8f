"""Compares the kernel of span scores, and its PyTorch twin, with the head's scores. Triton's interpreter runs it."""

import logging

import pytest
import torch

from spanlake.modeling.found import Found, Scale, Wanted
from spanlake.modeling.found import find_spans as plain
from spanlake.modeling.kernels.fallback import WithFallback
from spanlake.modeling.span_head import SpanHead

kernels = pytest.importorskip("spanlake.modeling.kernels.span_scores", reason="Triton is not installed")

D, K = 12, 4  # of the vectors, and of the widest span


def batch(kind: str, words: int, types: int, dtype: torch.dtype) -> tuple[SpanHead, torch.Tensor, torch.Tensor, Wanted]:
    torch.manual_seed(3)
    head = SpanHead(kind, D, K, dropout=0.0).to(dtype).eval()
    vectors, kinds = torch.randn(3, words, D).to(dtype), 3 * torch.randn(3, types, D).to(dtype)
    counts = [words, max(1, words // 2), 1]
    own = torch.tensor([(5, 0, 1000, counts[0]), (0, 3, 9, counts[1]), (0, 0, 1000, counts[2])])
    limits = torch.full((3, types), 0.5)
    limits[1, types // 2 :] = 1.0  # padding
    return head, vectors, kinds, Wanted(own, limits)


def every_one(
    head: SpanHead, words: torch.Tensor, types: torch.Tensor, wanted: Wanted, scale: Scale
) -> dict[int, float]:
    """Returns the score of each place, one span and type at a time."""
    scores = torch.sigmoid(head(words, types) * scale.scale + scale.shift)
    found, place = {}, 0
    for b, (first, own_from, own_to, count) in enumerate(wanted.own.tolist()):
        for i in range(words.shape[1]):
            for k in range(K):
                for c in range(types.shape[1]):
                    score = float(scores[b, i, k, c])
                    own = i + k < count and own_from <= 2 * (first + i) + k < own_to
                    if own and score > wanted.limits[b, c]:
                        found[place] = score
                    place += 1
    return found


def read(found: Found) -> dict[int, float]:
    count = int(found.header[0])
    return dict(zip(found.places[:count].tolist(), found.scores[:count].tolist(), strict=True))


@pytest.mark.parametrize("find", [plain, kernels.find_spans], ids=["plain", "kernel"])
@pytest.mark.parametrize("kind", ["paper", "marker_v0", "marker"])
@pytest.mark.parametrize(("words", "types"), [(1, 1), (9, 5), (23, 70)])
@torch.inference_mode()
def test_it_finds_the_spans_above_their_limits(find, kind: str, words: int, types: int):
    head, vectors, kinds, wanted = batch(kind, words, types, torch.float32)
    scale = Scale(1.3, -0.1)
    found = find(head, vectors, kinds, wanted, scale, room=5000)
    right = every_one(head, vectors, kinds, wanted, scale)
    assert found.header.tolist() == [len(right), 1]
    assert read(found) == pytest.approx(right, abs=1e-5)
    assert words == 1 or right  # some are found


@torch.inference_mode()
def test_half_precision_finds_nearly_the_same():
    """In float16 alone: Triton's interpreter multiplies no bfloat16. tests/gpu has both."""
    head, vectors, kinds, wanted = batch("marker_v0", 23, 20, torch.float16)
    one, other = (read(find(head, vectors, kinds, wanted, Scale(), 5000)) for find in (plain, kernels.find_spans))
    assert len(one) > 100
    assert len(one.keys() & other.keys()) > 0.97 * len(one.keys() | other.keys())
    assert max(abs(one[place] - other[place]) for place in one.keys() & other.keys()) < 0.02


@pytest.mark.parametrize("find", [plain, kernels.find_spans], ids=["plain", "kernel"])
@torch.inference_mode()
def test_what_finds_no_room_is_counted(find):
    head, vectors, kinds, wanted = batch("paper", 9, 5, torch.float32)
    right = every_one(head, vectors, kinds, wanted, Scale())
    found = find(head, vectors, kinds, wanted, Scale(), room=3)
    assert int(found.header[0]) == len(right) > 3
    assert set(found.places.tolist()) <= set(right)
    assert dict(zip(found.places.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(
        {place: right[place] for place in found.places.tolist()}, abs=1e-5
    )


@pytest.mark.parametrize("find", [plain, kernels.find_spans], ids=["plain", "kernel"])
@torch.inference_mode()
def test_it_notes_numbers_that_float16_cannot_hold(find):
    head, vectors, kinds, wanted = batch("paper", 9, 5, torch.float16)
    head.joined.weight.mul_(1e5)
    assert int(find(head, vectors, kinds, wanted, Scale(), 50).header[1]) == 0


def test_a_kernel_that_fails_is_replaced_with_one_warning(caplog: pytest.LogCaptureFixture):
    calls = []

    def broken(value: int) -> int:
        calls.append(value)
        raise RuntimeError("out of resource: shared memory")

    double = WithFallback("The kernel", lambda: broken, lambda value: 2 * value)
    with caplog.at_level(logging.WARNING):
        assert [double(1), double(2)] == [2, 4]
    assert calls == [1]
    assert caplog.messages == [
        "The kernel does not run on this card (RuntimeError: out of resource: shared memory), "
        "so slower code of PyTorch takes its place."
    ]


def test_without_triton_the_message_says_what_to_install(caplog: pytest.LogCaptureFixture):
    def load() -> object:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    with caplog.at_level(logging.WARNING):
        assert WithFallback("The kernel", load, lambda: 7)() == 7
    assert caplog.messages == [
        "The kernel needs Triton, so slower code of PyTorch takes its place: pip install triton."
    ]


def test_memory_that_runs_out_is_not_the_kernels_fault():
    def full() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        WithFallback("The kernel", lambda: full, lambda: 7)()
