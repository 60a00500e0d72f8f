"""The loss of every real span and type: binary cross-entropy (Zaratiana et al. 2023, equation 3), or focal loss
(Lin et al. 2017, equation 5).

Shapes: B texts, W words, K span width, C types, P true spans.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from spanlake.modeling.span_head import span_mask
from spanlake.training.recipe import OptimSection


def span_loss(
    logits_BWKC: torch.Tensor,
    true_4P: torch.Tensor,
    word_counts: list[int],
    type_counts: list[int],
    optim: OptimSection,
    token_level: bool = False,
) -> torch.Tensor:
    """The loss summed over texts, spans and types; a step divides it by the texts of its whole batch. At token level it
    is summed over words and the parts of their scores, in the place of spans.

    true_4P: int64, the places of the true spans in `logits_BWKC`. `optim.positive_weight` multiplies the loss of true
    spans, which are about one in a hundred; focal loss, with p the probability given to what is right, multiplies every
    loss by (1 - p) ** `focal_gamma`, and by `focal_alpha` where the span is true and 1 - `focal_alpha` where it is not.
    """
    logits_BWKC = logits_BWKC.float()
    targets_BWKC = torch.zeros_like(logits_BWKC)
    targets_BWKC[tuple(true_4P)] = 1.0
    # No indices of what counts, and no copies: the padding is a few per cent.
    losses = functional.binary_cross_entropy_with_logits(logits_BWKC, targets_BWKC, reduction="none")
    weights = _counted(logits_BWKC, word_counts, type_counts, token_level)
    positive, negative = optim.positive_weight, 1.0
    if optim.loss == "focal":
        wrong = (-torch.expm1(-losses)).clamp_min(1e-30)  # 1 - p; a power below 1 has no slope at 0
        losses = losses * wrong**optim.focal_gamma
        positive, negative = positive * optim.focal_alpha, 1 - optim.focal_alpha
    if positive != 1 or negative != 1:
        weights = weights * (negative + (positive - negative) * targets_BWKC)
    return (losses * weights).sum()


def _counted(
    logits_BWKC: torch.Tensor, word_counts: list[int], type_counts: list[int], token_level: bool
) -> torch.Tensor:
    """[B, W, K, C] float32, 1 where the span lies within its text and the type is one of its prompt. At token level, K
    counts the parts of a word's score, and the word must lie within its text."""
    _, words, width, types = logits_BWKC.shape
    device = logits_BWKC.device
    spans = span_mask(word_counts, words, 1 if token_level else width, device).float()
    columns = (torch.arange(types, device=device) < torch.tensor(type_counts, device=device).unsqueeze(1)).float()
    return spans.unsqueeze(-1) * columns[:, None, None, :]
