"""Binary cross-entropy over every real span and type (Zaratiana et al. 2023, equation 3).

Shapes: B texts, W words, K span width, C types.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from spanlake.modeling.span_head import span_mask


def span_loss(
    logits_BWKC: torch.Tensor,
    targets_BWKC: torch.Tensor,
    word_counts: list[int],
    type_counts: list[int],
    positive_weight: float = 1.0,
) -> torch.Tensor:
    """The loss summed over spans and types and divided by the number of texts.

    `positive_weight` multiplies the loss of true spans, which are about one in a hundred.
    """
    _, words, width, types = logits_BWKC.shape
    spans = span_mask(word_counts, words, width, logits_BWKC.device).unsqueeze(-1)
    columns = torch.arange(types, device=logits_BWKC.device) < torch.tensor(
        type_counts, device=logits_BWKC.device
    ).unsqueeze(1)
    counted = spans & columns[:, None, None, :]
    losses = functional.binary_cross_entropy_with_logits(
        logits_BWKC[counted],
        targets_BWKC[counted],
        pos_weight=torch.tensor(positive_weight, device=logits_BWKC.device),
        reduction="sum",
    )
    return losses / logits_BWKC.shape[0]
