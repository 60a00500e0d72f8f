"""Compares the factored span head with the formulas of the paper and of the published heads, in float64."""

import pytest
import torch
from torch import nn

from spanlake.modeling import span_head
from spanlake.modeling.span_head import SpanHead, span_mask

D, K = 6, 4


def textbook(head: SpanHead, kind: str, words: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, W, K, C], one span and one type at a time; 0 for spans past the last word."""
    batch, count, _ = words.shape
    logits = torch.zeros(batch, count, head.max_width, types.shape[1], dtype=words.dtype)
    for b in range(batch):
        for i in range(count):
            for k in range(min(head.max_width, count - i)):
                first, last = words[b, i], words[b, i + k]
                if kind == "paper":
                    pair = torch.cat([first, last])
                else:
                    pair = torch.cat([head.start(first), head.end(last)]).relu()
                vector = head.out(pair if kind == "marker" else head.joined(pair).relu())
                for c in range(types.shape[1]):
                    logits[b, i, k, c] = vector @ types[b, c]
    return logits


def build(kind: str) -> SpanHead:
    torch.manual_seed(1)
    head = SpanHead(kind, D, K, dropout=0.0).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.7)
    return head


@pytest.mark.parametrize("kind", ["paper", "marker_v0", "marker"])
@pytest.mark.parametrize("types", [1, D, D + 1, 3 * D])  # folded into the second layer up to D, not beyond
@pytest.mark.parametrize("words", [1, K - 1, K, 9])
@pytest.mark.parametrize("chunk", [1, 1 << 21])  # each text by itself, or all at once
def test_scores_and_gradients_equal_the_formula(
    monkeypatch: pytest.MonkeyPatch, kind: str, types: int, words: int, chunk: int
):
    monkeypatch.setattr(span_head, "_CPU_CHUNK", chunk)
    head = build(kind)
    word_vectors = torch.randn(3, words, D, dtype=torch.float64, requires_grad=True)
    type_vectors = torch.randn(3, types, D, dtype=torch.float64, requires_grad=True)
    inputs = [word_vectors, type_vectors, *head.parameters()]

    expected = textbook(head, kind, word_vectors, type_vectors)
    logits = head(word_vectors, type_vectors)
    assert logits.shape == (3, words, K, types)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected.float(), rtol=2e-7, atol=1e-7)

    # The weights are whole numbers, which are exact in float32. They are 0 outside the texts' spans, as in a loss.
    weight = torch.randint(-3, 4, logits.shape) * span_mask([words] * 3, words, K, logits.device).unsqueeze(-1)
    ours = torch.autograd.grad(logits, inputs, weight.float())
    theirs = torch.autograd.grad(expected, inputs, weight.double())
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["paper", "marker_v0", "marker"])
def test_a_text_scores_the_same_beside_others(kind: str):
    head = build(kind)
    words, types = torch.randn(5, 7, D, dtype=torch.float64), torch.randn(5, 2, D, dtype=torch.float64)
    together = head(words, types)
    for i in range(5):
        torch.testing.assert_close(head(words[i : i + 1], types[i : i + 1])[0], together[i])
        short = head(words[i : i + 1, :3], types[i : i + 1])[0]
        inside = span_mask([3], 3, K, words.device)[0]
        torch.testing.assert_close(short[inside], together[i, :3][inside])


def test_the_mask_keeps_spans_within_their_text():
    mask = span_mask([3, 1], 3, 2, torch.device("cpu"))
    assert mask.tolist() == [
        [[True, True], [True, True], [True, False]],
        [[True, False], [False, False], [False, False]],
    ]
