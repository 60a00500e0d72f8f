"""The models that a server holds: who stays in memory, and what an evicted one leaves behind."""

import asyncio
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from spanlake import Entity, Extractor
from spanlake.modeling.lora import Adapter
from spanlake.modeling.model import SpanModel
from spanlake.package import load_package, save_adapter
from spanlake.serving.config import read_config
from spanlake.serving.models import Models


def test_an_evicted_model_frees_its_memory_before_the_next_one_loads(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    load = Extractor.load
    models: list[weakref.ref[SpanModel]] = []
    alive_before: list[int] = []
    memory_before: list[int] = []

    def load_heavy(*args: Any, **kwargs: Any) -> Extractor:
        alive_before.append(sum(model() is not None for model in models))
        memory_before.append(psutil.Process().memory_info().rss)
        extractor = load(*args, **kwargs)
        extractor.package.model.ballast = torch.nn.Parameter(torch.ones(25_000_000))  # 100 MB
        models.append(weakref.ref(extractor.package.model))
        return extractor

    monkeypatch.setattr(Extractor, "load", load_heavy)
    names = ["a", "b", "c", "d"]
    config = read_config(
        {
            "model": str(tiny_model_dir),
            "models": {name: str(tiny_model_dir) for name in names},
            "loaded_models": 1,
            "device": "cpu",
            "precision": "float32",
        }
    )

    async def use_each() -> None:
        held = Models(config, lambda report: None)
        await held.load_default()
        for name in names:
            async with held.use(name) as model:
                assert model.name == name
            del model
        await held.close(5)

    asyncio.run(use_each())
    assert alive_before == [0, 1, 1, 1, 1]  # the default one alone
    assert memory_before[-1] - memory_before[2] < 50_000_000  # not a model more, though two have come and gone


def bytes_held(extractors: list[Extractor]) -> int:
    """Returns the bytes of the weights in memory, those that several models share counted once."""
    weights = [weight for extractor in extractors for weight in extractor.package.model.parameters()]
    return sum({weight.data_ptr(): weight.nbytes for weight in weights}.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_over_one_base_share_the_weights_that_they_do_not_change(
    precision: str, tiny_model_dir: Path, tmp_path: Path
):
    layer, base = "encoder.encoder.layer.0.attention.self.query", load_package(tiny_model_dir)
    paths = {"base": str(tiny_model_dir)}
    for seed, name in enumerate(["legal", "medical"]):
        torch.manual_seed(seed)
        changes = {f"{layer}.lora_A": torch.randn(4, 32), f"{layer}.lora_B": torch.randn(32, 4)}
        paths[name] = str(tmp_path / name)
        save_adapter(tmp_path / name, Adapter(str(tiny_model_dir), base.fingerprint, 4, 1.0), changes, base)
    texts, labels = ["Ada met Curie in London and Paris"], ["person", "place"]

    def found(extractor: Extractor) -> list[list[Entity]]:
        return extractor.extract(texts, labels, threshold=0.01)

    apart = {name: found(Extractor.load(path, device="cpu", precision=precision)) for name, path in paths.items()}
    settings = {"model": paths["base"], "models": paths, "loaded_models": 3, "device": "cpu", "precision": precision}

    async def served() -> None:
        held = Models(read_config(settings), lambda report: None)
        await held.load_default()
        one = bytes_held([held.default.extractor])
        for name in ("legal", "medical"):
            async with held.use(name) as model:
                assert found(model.extractor) == apart[name] != apart["base"]
        query = base.model.get_parameter(f"{layer}.weight").numel() * (4 if precision == "float32" else 2)
        assert bytes_held([model.extractor for model in held.loaded]) == one + 2 * query
        assert found(held.default.extractor) == apart["base"]
        await held.close(5)

    asyncio.run(served())
