"""The dev score of a model during its training, and the package that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from spanlake.evaluation.scores import find, tally_of
from spanlake.inference.extractor import Extractor
from spanlake.package import Package, repack
from spanlake.storage import Place
from spanlake.training.data import DevSet

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


def publish(run: Place, package: Package, step: int, f1: float) -> None:
    """Replaces the run's `package/`."""
    training = {**package.metadata["training"], "step": step, "dev_f1": f1}
    known = Package(package.name, package.model, package.tokenizer, {**package.metadata, "training": training}, "")
    with TemporaryDirectory() as temporary:
        draft = Path(temporary) / "package"
        repack(known, draft, name=package.name, int8=False)
        run.publish(draft, "package")
