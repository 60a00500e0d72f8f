"""LoRA: what is trained, what is published, and that an adapter over its base computes what peft computes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spanlake import Extractor, package
from spanlake.errors import PackageError, UserError
from spanlake.modeling.lora import Adapter
from spanlake.modeling.model import SpanModel
from spanlake.package import Package, load_package, open_package, repack, save_adapter, verify_package
from spanlake.training.encoders import starting_model
from spanlake.training.lora import add_lora, changes_of, merged
from spanlake.training.recipe import LoraSection, ModelSection

peft = pytest.importorskip("peft")
LORA = LoraSection(rank=4, alpha=12.0, targets=("query", "value"))


def randomised(start: str, lora: LoraSection) -> SpanModel:
    """A model whose adapter has been trained, as far as its weights show."""
    torch.manual_seed(3)
    _, model, _ = starting_model(ModelSection(start=start, lora=lora))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def encoded(model: SpanModel) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20) % 30
    with torch.inference_mode():
        return model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def adapter_of(tiny: Path, directory: Path, model: SpanModel, lora: LoraSection, base: str | None = None) -> Path:
    opened = load_package(tiny)
    adapter = Adapter(base or str(tiny), opened.fingerprint, lora.rank, lora.alpha / lora.rank)
    known = Package("legal", model, opened.tokenizer, {"license": "Apache-2.0"}, "")
    save_adapter(directory, adapter, changes_of(model, lora), known)
    return directory


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return adapter_of(tiny_model_dir, tmp_path / "adapter", randomised(str(tiny_model_dir), LORA), LORA)


def edit(directory: Path, **values: object) -> None:
    path = directory / "spanlake.json"
    manifest = json.loads(path.read_text())
    manifest["adapter"] |= values
    path.write_text(json.dumps(manifest))


def refusal(directory: Path) -> str:
    with pytest.raises(PackageError) as caught:
        open_package(str(directory))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    "lora",
    [LORA, LoraSection(rank=3, alpha=5.0), LoraSection(rank=4, targets=("dense",), train_head=True)],
    ids=["query and value", "all layers", "the head too"],
)
def test_merged_or_loaded_over_its_base_an_adapter_computes_what_peft_computes(
    lora: LoraSection, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = randomised(str(tiny_model_dir), lora)
    expected = encoded(model)
    assert (expected - encoded(load_package(tiny_model_dir).model)).abs().max() > 0.05
    ours = merged(model, lora)
    torch.testing.assert_close(encoded(ours), expected, atol=1e-4, rtol=0)
    loaded = load_package(adapter_of(tiny_model_dir, tmp_path / "adapter", model, lora)).model
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    for layer in [layer for layer in model.modules() if isinstance(layer, peft.tuners.lora.Linear)]:
        layer.merge()
    torch.testing.assert_close(encoded(model), encoded(ours), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "lora",
    [LORA, LoraSection(rank=2, targets=("query",), train_head=True), LoraSection(rank=2)],
    ids=["query and value", "query and the head", "all layers"],
)
def test_only_the_adapter_is_trained(lora: LoraSection, tiny_model_dir: Path) -> None:
    _, model, _ = starting_model(ModelSection(start=str(tiny_model_dir), lora=lora))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = {name for name, _ in model.named_parameters() if ".lora_" in name}
    head = {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    assert matrices and trained == matrices | (head if lora.train_head else set())
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in matrices}
    assert layers == ({*lora.targets} or {"query", "key", "value", "dense"})


def test_an_adapter_is_a_small_package_like_others(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    manifest = verify_package(adapter)
    base = load_package(tiny_model_dir)
    assert sorted(path.name for path in adapter.iterdir()) == ["README.md", "adapter.safetensors", "spanlake.json"]
    assert manifest["adapter"] == {
        "base": str(tiny_model_dir),
        "base_fingerprint": base.fingerprint,
        "rank": 4,
        "scale": 3.0,
    }
    assert base.fingerprint in (adapter / "README.md").read_text()
    loaded = open_package(str(adapter))
    assert (loaded.name, loaded.fingerprint) == ("legal", manifest["fingerprint"]) and loaded.config == base.config
    texts, labels = ["Ada met Curie in London"], ["person", "place"]
    with Extractor.load(str(adapter)) as ours, Extractor.load(str(tiny_model_dir)) as other:
        found = ours.extract(texts, labels, threshold=0.01)
        assert found != other.extract(texts, labels, threshold=0.01)
    repack(loaded, tmp_path / "whole", name="whole", int8=False)
    assert "adapter" not in load_package(tmp_path / "whole").metadata
    with Extractor.load(str(tmp_path / "whole")) as whole:
        assert whole.extract(texts, labels, threshold=0.01) == found


def test_the_fingerprint_of_an_adapter_covers_what_determines_its_output(adapter: Path, tiny_model_dir: Path) -> None:
    fingerprint = open_package(str(adapter)).fingerprint
    shutil.copytree(tiny_model_dir, adapter.parent / "base")
    edit(adapter, base="../base")  # the place of the base, here from the adapter's own directory
    assert open_package(str(adapter)).fingerprint == fingerprint
    edit(adapter, scale=2.0)
    assert "altered" in refusal(adapter)
    edit(adapter, scale=3.0)
    tensors = load_file(adapter / "adapter.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, adapter / "adapter.safetensors")
    assert "altered" in refusal(adapter)


def test_an_adapter_is_loaded_from_a_uri(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_package(adapter.as_uri()).fingerprint == open_package(str(adapter)).fingerprint


# --- what is refused ----------------------------------------------------------------------------------------------


def test_an_adapter_is_refused_over_another_base(adapter: Path) -> None:
    edit(adapter, base="mini")
    message = refusal(adapter)
    assert "changes a model with the fingerprint" in message and "mini has" in message and "adapter.base" in message


def test_an_adapter_without_its_base_says_what_it_needs(adapter: Path) -> None:
    edit(adapter, base="/nowhere/base")
    assert "'/nowhere/base', which cannot be used" in refusal(adapter)
    edit(adapter, base=str(adapter))
    assert "it is an adapter too" in refusal(adapter)
    edit(adapter, base=3)
    assert f"of {adapter} cannot be used: adapter.base is 3" in refusal(adapter)
    edit(adapter, base=".", scale=float("nan"))
    assert "adapter.scale is nan" in refusal(adapter)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("encoder.encoder.layer.9.attention.self.query.lora_A", torch.ones(4, 32)),
        ("encoder.encoder.layer.0.attention.self.query.lora_A", torch.ones(3, 32)),
        ("encoder.encoder.layer.0.attention.self.query.lora_A", torch.ones(4, 31)),
        ("spans.out.weight", torch.ones(2, 2)),
    ],
    ids=["no such layer", "another rank", "another width", "another head"],
)
def test_tensors_that_fit_no_weight_are_named(name: str, tensor: torch.Tensor, adapter: Path) -> None:
    save_file({**load_file(adapter / "adapter.safetensors"), name: tensor}, adapter / "adapter.safetensors")
    path = adapter / "spanlake.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "fingerprint": package._fingerprint(adapter, manifest)}))
    assert f"{name} has no counterpart" in refusal(adapter)


def test_a_target_that_the_encoder_does_not_have_is_refused(tiny_model_dir: Path) -> None:
    model = load_package(tiny_model_dir).model
    with pytest.raises(UserError, match="'q_proj', which is no linear layer .* are dense, key, query, value"):
        add_lora(model, LoraSection(targets=("q_proj",)))


def test_an_adapter_over_an_adapter_is_refused_before_it_is_trained(adapter: Path) -> None:
    with pytest.raises(UserError, match="is an adapter, which cannot be the base of another; .*merged"):
        starting_model(ModelSection(start=str(adapter), lora=LoraSection(publish="adapter")))
    _, model, _ = starting_model(ModelSection(start=str(adapter), lora=LoraSection(publish="merged")))
    torch.testing.assert_close(encoded(merged(model, LoraSection())), encoded(open_package(str(adapter)).model))


def test_a_missing_library_is_named(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spanlake.training import lora

    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spanlake\[lora\]'"):
        add_lora(load_package(tiny_model_dir).model, LORA)
