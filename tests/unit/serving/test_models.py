"""The models that a server holds: who stays in memory, and what an evicted one leaves behind."""

import asyncio
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from spanlake import Extractor
from spanlake.modeling.model import SpanModel
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
