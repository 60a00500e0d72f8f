"""Makes the embedded package from a trained one, with int8 weights and a model card with the scores of these weights.

python tools/release_mini.py runs/mini-types/package BENCHMARK_DIRECTORY platform/spanlake/models/mini
"""

import sys
import tempfile
from pathlib import Path

import torch

from spanlake.evaluation.scores import evaluate
from spanlake.evaluation.sets import read_sets
from spanlake.inference.extractor import Extractor
from spanlake.package import load_package, repack

THRESHOLD = 0.5
CARD = [
    "Encoder: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), not cased: it reads English, and is small",
    "Training: docs/mini-model.md says how, and names the recipes",
    "Data: passages of the English Wikipedia with open types (CC BY-SA 4.0), invented texts, Few-NERD (CC BY-SA 4.0),"
    " MultiCoNER I and II, Broad Twitter, WNUT17, WikiGold, BioNLP13CG, BC5CDR and NCBI-disease (CC BY 4.0), SEC"
    " filings (CC BY 3.0), AnEM (CC BY-SA 3.0)",
]

trained, benchmark, target = map(Path, sys.argv[1:])
package = load_package(trained)
with tempfile.TemporaryDirectory() as temporary:
    draft = Path(temporary) / "mini"
    repack(package, draft, name="mini", int8=True)
    extractor = Extractor(load_package(draft), torch.device("cpu"), torch.float32)
sets = read_sets(benchmark, "test")
results = [outcome.result(THRESHOLD) for outcome in evaluate(extractor, sets, threshold=THRESHOLD)]
seen = set(package.metadata["labels_seen"])
asked = {label.lower() for benchmark_set in sets for label in benchmark_set.labels}
both = ", ".join(sorted(asked & seen))
training = {key: value for key, value in package.metadata["training"].items() if key in ("texts", "step", "dev_f1")}
repack(
    package,
    target,
    name="mini",
    int8=True,
    metrics={"split": "test", "threshold": THRESHOLD, "sets": [result.to_dict() for result in results]},
    training=training,
    card=[
        *CARD,
        "Trained on none of the sets below; two of their sentences share ten words in a row with a training text",
        f"Of their types, these had been seen in other texts: {both}",
    ],
)
for result in results:
    print(result.name, result.overall.f1)
