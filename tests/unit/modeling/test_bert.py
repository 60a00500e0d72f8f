"""Compares our BERT with that of the transformers library, and each text of a batch with the text alone."""

from typing import Any

import pytest
import torch
from transformers import BertConfig as TheirConfig
from transformers import BertModel

from spanlake.errors import PackageError
from spanlake.modeling.bert import Bert, BertConfig, is_bert
from spanlake.modeling.model import build_encoder

VALUES = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,  # wide enough that positions and context count
    "pad_token_id": 0,
}
LENGTHS = [20, 13, 13, 9, 1]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 60, (len(LENGTHS), 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    return (torch.arange(20) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def pair(values: dict[str, object]) -> tuple[Bert, BertModel]:
    torch.manual_seed(3)
    theirs = BertModel(TheirConfig(**values), add_pooling_layer=False).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1:  # else biases would be 0, and scales 1
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("Norm.weight") else 0.0, 0.1)
    ours = Bert(BertConfig.of(values)).eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_vectors_and_gradients_equal_those_of_the_transformers_library(
    ids: torch.Tensor, mask: torch.Tensor, activation: str
) -> None:
    ours, theirs = pair(VALUES | {"hidden_act": activation})
    upward = torch.randn(*ids.shape, 32, generator=torch.Generator().manual_seed(2)) * mask.unsqueeze(-1)
    vectors, gradients = [], []
    for encoder in (ours, theirs):
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden.backward(upward)
        vectors.append(hidden.detach() * mask.unsqueeze(-1))
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-5, atol=1e-5)
    for name, expected in gradients[1].items():
        assert (gradients[0][name] - expected).norm() <= 1e-5 * expected.norm() + 1e-5, name
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids, mask)[0] * mask.unsqueeze(-1), vectors[1], rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(ids: torch.Tensor, mask: torch.Tensor) -> None:
    ours, _ = pair(VALUES)
    with torch.inference_mode():
        together = ours(ids, mask).last_hidden_state
        for row, length in enumerate(LENGTHS):
            alone = ours(ids[row : row + 1, :length], mask[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(together[row, :length], alone, rtol=1e-5, atol=1e-5)


def test_padded_rows_of_an_exported_program_give_the_same_vectors(ids: torch.Tensor, mask: torch.Tensor) -> None:
    ours, _ = pair(VALUES)
    program = torch.export.export(ours, (ids, mask)).module()
    expected = ours(ids, mask).last_hidden_state * mask.unsqueeze(-1)
    torch.testing.assert_close(program(ids, mask)[0] * mask.unsqueeze(-1), expected, rtol=1e-5, atol=1e-5)


def test_random_weights_have_the_configured_spread() -> None:
    torch.manual_seed(1)
    built = build_encoder(VALUES)
    assert isinstance(built, Bert)
    for name, parameter in built.named_parameters():
        if name.endswith("embeddings.weight") or name.endswith(("dense.weight", "query.weight")):
            assert parameter.std().item() == pytest.approx(0.3, rel=0.15), name
    assert not built.embeddings.word_embeddings.weight[0].any()  # padding


def test_gradient_checkpointing_changes_no_gradient(ids: torch.Tensor, mask: torch.Tensor) -> None:
    ours, _ = pair(VALUES)
    ours.train()
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        ours.zero_grad()
        ours(ids, mask).last_hidden_state.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in ours.parameters()])
        ours.gradient_checkpointing_enable()
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("other", "expected"),
    [({}, True), ({"hidden_act": "silu"}, False), ({"is_decoder": True}, False), ({"model_type": "roberta"}, False)],
)
def test_other_kinds_are_left_to_the_transformers_library(other: dict[str, object], expected: bool) -> None:
    assert is_bert(VALUES | other) is expected


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_hidden_layers", 0, "a whole number of at least 1"),
        ("vocab_size", "60", "a whole number of at least 1"),
        ("layer_norm_eps", -1.0, "a number of at least 0"),
        ("layer_norm_eps", float("nan"), "a number of at least 0"),
        ("pad_token_id", 60, "a whole number below vocab_size, 60"),
        ("pad_token_id", True, "a whole number below vocab_size, 60"),
        ("hidden_size", 30, "a multiple of the 4 heads"),
    ],
)
def test_a_value_that_no_bert_has_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(PackageError, match=f"does not fit type 'bert': {name} is {value!r}, not {allowed}"):
        build_encoder(VALUES | {name: value})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_act": ["gelu"]}, "The encoder's configuration does not fit type 'bert'"),
        ({"hidden_size": 4 * 10**12}, "No encoder can be built"),
        ({"hidden_dropout_prob": 2.0}, "No encoder can be built"),
        ({"model_type": ["bert"]}, "The encoder type .* is unknown"),
    ],
    ids=["a list", "too wide", "too much dropout", "a list of types"],
)
def test_an_encoder_that_cannot_be_built_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(PackageError, match=f"^{says}"):
        build_encoder(VALUES | values)
