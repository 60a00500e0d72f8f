"""The model as a graph of tensors alone, which other runtimes can run: every size but K is free.

Shapes: B texts, T sub-words, W words, K span width, C types, D width of word and type vectors, F width inside the
joint layer.
"""

from __future__ import annotations

import torch
from torch import nn

from spanlake.calibration import Calibration
from spanlake.modeling.model import SpanModel
from spanlake.modeling.span_head import SpanHead
from spanlake.modeling.token_head import TokenHead


class Graph(nn.Module):
    """Computes what the model and the calibration compute, without a loop over texts and without packed sequences."""

    def __init__(self, model: SpanModel, calibration: Calibration) -> None:
        super().__init__()
        self.model = model
        self.scale, self.shift = calibration.scale, calibration.shift
        self.lstm = None if model.lstm is None else _BothWays(model.lstm)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        word_positions: torch.Tensor,
        type_positions: torch.Tensor,
        word_counts: torch.Tensor,
    ) -> torch.Tensor:
        """Returns scores from 0 to 1, [B, W, K, C]; 0 for spans past a text's last word. Ignore padding types.

        A token-level model returns [B, W, 3, C]: the scores of start, end and inside; 0 past a text's last word.

        input_ids, attention_mask: int64 [B, T]; word_positions: int64 [B, W]; type_positions: int64 [B, C];
        word_counts: int64 [B].
        """
        hidden = self.model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        words, types = _rows(hidden, word_positions), _rows(hidden, type_positions)
        if self.model.projection is not None:
            words, types = self.model.projection(words), self.model.projection(types)
        if self.lstm is not None:
            words = self.lstm(words, word_counts)
        head, types = self.model.spans, self.model.types(types)
        last = torch.arange(word_positions.shape[1]).view(1, -1, 1)
        if isinstance(head, TokenHead):
            logits = _token_logits(head, words, types)
        else:
            assert isinstance(head, SpanHead)
            logits = _span_logits(head, words, types)
            last = last + torch.arange(head.max_width)
        scores = torch.sigmoid(logits * self.scale + self.shift)
        return scores * (last < word_counts.view(-1, 1, 1)).unsqueeze(-1)


class _BothWays(nn.Module):
    """A bidirectional LSTM over padded sequences, as two that read forwards: the second reads each text reversed."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.forwards = nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True)
        self.backwards = nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True)
        weights = lstm.state_dict()
        self.forwards.load_state_dict({name: weights[name] for name in self.forwards.state_dict()})
        self.backwards.load_state_dict({name: weights[f"{name}_reverse"] for name in self.backwards.state_dict()})

    def forward(self, words_BWD: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
        mirrored = (counts_B.unsqueeze(1) - 1 - torch.arange(words_BWD.shape[1])).clamp(min=0)
        there, _ = self.forwards(words_BWD)
        back, _ = self.backwards(_rows(words_BWD, mirrored))
        return torch.cat((there, _rows(back, mirrored)), dim=-1)


def _rows(vectors_BND: torch.Tensor, positions_BM: torch.Tensor) -> torch.Tensor:
    return vectors_BND.gather(1, positions_BM.unsqueeze(-1).expand(-1, -1, vectors_BND.shape[-1]))


def _span_logits(head: SpanHead, words_BWD: torch.Tensor, types_BCD: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, W, K, C]. Those of spans past the last word have no meaning."""
    start, end = head.word_parts(words_BWD)
    words, last = start.shape[1], head.max_width - 1
    end = nn.functional.pad(end, (0, 0, 0, last))
    sums = [start + end.narrow(1, k, words) for k in range(head.max_width)]
    if head.joined is None:
        return torch.stack([each @ types_BCD.transpose(1, 2) for each in sums], dim=2)
    columns = (types_BCD @ head.out.weight).transpose(1, 2)
    bias = (types_BCD @ head.out.bias).unsqueeze(1)
    return torch.stack([each.relu() @ columns + bias for each in sums], dim=2)


def _token_logits(head: TokenHead, words_BWD: torch.Tensor, types_BCD: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, W, 3, C]. The graph holds [B, W, C, F] at once."""
    word, word_factor = head.word(words_BWD).chunk(2, dim=-1)
    kind, kind_factor = head.kind(types_BCD).chunk(2, dim=-1)
    by_word, by_type, by_product = head.joined.weight.chunk(3, dim=1)
    of_word = nn.functional.linear(word, by_word, head.joined.bias).unsqueeze(2)
    of_type = nn.functional.linear(kind, by_type).unsqueeze(1)
    product = nn.functional.linear(word_factor.unsqueeze(2) * kind_factor.unsqueeze(1), by_product)
    logits: torch.Tensor = head.out(torch.relu(of_word + of_type + product))
    return logits.transpose(2, 3)
