"""Compares DeBERTa on our kernel with the transformers library's own. Triton's interpreter runs the kernel."""

import copy
from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from spanlake.modeling.deberta import use_lean_attention

V3: dict[str, Any] = {
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}
OLD: dict[str, Any] = {"share_att_key": False, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 6}


def encoder(**values: Any) -> DebertaV2Model:
    torch.manual_seed(5)
    config = DebertaV2Config(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        relative_attention=True,
        position_biased_input=False,
        type_vocab_size=0,
        initializer_range=0.6,
        **values,
    )
    return DebertaV2Model(config).eval()


def assert_equal_where_real(one: DebertaV2Model, other: DebertaV2Model, length: int) -> None:
    ids = torch.randint(1, 50, (3, length))
    mask = (torch.arange(length) < torch.tensor([[length], [max(1, length // 2)], [1]])).long()
    with torch.inference_mode():
        ours, theirs = (each(input_ids=ids, attention_mask=mask).last_hidden_state for each in (one, other))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("length", [1, 70])  # the last needs two blocks, and distances that share an embedding
@pytest.mark.parametrize("values", [V3, {**OLD, "pos_att_type": ["p2c"]}, OLD], ids=str)
def test_the_kernel_computes_what_transformers_computes(
    values: dict[str, Any], length: int, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("triton", reason="Triton is not installed")
    theirs = encoder(**values)
    ours = copy.deepcopy(theirs)
    use_lean_attention(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_equal_where_real(ours, theirs, length)
    assert not caplog.messages  # nothing took the kernel's place


def test_without_the_kernel_it_computes_the_same(caplog: pytest.LogCaptureFixture):
    def load() -> Any:
        raise RuntimeError("no compiler")

    theirs = encoder(**V3)
    ours = copy.deepcopy(theirs)
    use_lean_attention(ours, load)
    assert_equal_where_real(ours, theirs, 20)
    assert len(caplog.messages) == 1
