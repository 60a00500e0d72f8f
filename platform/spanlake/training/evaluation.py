"""The dev score of a model during its training, and the package that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from spanlake.evaluation.scores import find, tally_of
from spanlake.inference.extractor import Extractor
from spanlake.modeling.lora import Adapter
from spanlake.package import Package, absolute_name, repack, save_adapter
from spanlake.storage import Place
from spanlake.training.data import DevSet
from spanlake.training.lora import changes_of, merged
from spanlake.training.recipe import ModelSection

_THRESHOLD = 0.5


def dev_score(package: Package, sets: Sequence[DevSet]) -> float:
    """Returns the mean over data sets of the exact-match F1 on their dev parts, 0 to 1."""
    package.model.eval()
    extractor = Extractor(package, next(package.model.parameters()).device, torch.float32)
    scores = []
    for data in sets:
        texts = [example.text for example in data.examples]
        found = find(extractor, texts, [data.asked(example) for example in data.examples], _THRESHOLD, nested=False)
        gold = [[(mention.start, mention.end, mention.label) for mention in e.mentions] for e in data.examples]
        scores.append(tally_of(found, gold).overall().f1)
    return sum(scores) / len(scores)


def publish(run: Place, package: Package, section: ModelSection, base: str, step: int, f1: float) -> None:
    """Replaces the run's `package/`. `base` is the fingerprint of the model that the run begins with."""
    training = {**package.metadata["training"], "step": step, "dev_f1": f1}
    known = replace(package, metadata={**package.metadata, "training": training})
    lora = section.lora
    with TemporaryDirectory() as temporary:
        draft = Path(temporary) / "package"
        if lora and lora.publish == "adapter":
            adapter = Adapter(absolute_name(section.start), base, lora.rank, lora.alpha / lora.rank)
            save_adapter(draft, adapter, changes_of(package.model, lora), known)
        else:
            known = replace(known, model=merged(package.model, lora)) if lora else known
            repack(known, draft, name=package.name, int8=False)
        run.publish(draft, "package")
