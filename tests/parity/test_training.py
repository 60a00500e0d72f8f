"""The loss of a batch beside the published library's, and the benchmark that times both."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT
from gliner import GLiNER
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import spanlake
from spanlake.data.batches import TokenizedExample
from spanlake.modeling.gliner_format import write_gliner
from spanlake.package import open_package
from spanlake.training.loss import span_loss
from spanlake.training.recipe import OptimSection

WORDS = [
    "ada",
    "alain",
    "babbage",
    "canada",
    "curie",
    "geneva",
    "london",
    "marie",
    "montreal",
    "of",
    "works",
    "at",
    "in",
]
TYPES = ["person", "location", "organization", "award", "number"]


def examples(count: int, seed: int = 1) -> list[dict]:
    """In the library's own form; each with the types it is asked for."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(3, 12))
        starts = sorted(rng.sample(range(len(words)), 2))
        ner = [[start, min(start + rng.randint(0, 2), len(words) - 1), rng.choice(TYPES)] for start in starts]
        negative = [label for label in TYPES if label not in [mention[2] for mention in ner]]
        labels = sorted({*(mention[2] for mention in ner), *negative[: rng.randint(0, 2)]})
        rows.append({"tokenized_text": words, "ner": ner, "ner_labels": labels})
    return rows


@pytest.mark.parametrize("focal", [False, True])
def test_the_loss_and_its_gradient_are_the_library_s(tiny_model_dir: Path, tmp_path: Path, focal: bool) -> None:
    package = open_package(str(tiny_model_dir))
    write_gliner(tmp_path / "published", package.model, package.tokenizer.backend)
    reference = GLiNER.from_pretrained(str(tmp_path / "published")).eval()
    rows = examples(4)
    collated = reference._create_data_collator()(rows)
    settings = {"alpha": 0.75, "gamma": 2.0} if focal else {"alpha": -1, "gamma": 0}
    expected = reference(**settings, reduction="sum", masking="none", negatives=1.0, **collated).loss

    tokenizer = package.tokenizer
    ours = [
        TokenizedExample(tokenizer.words(row["tokenized_text"]), tuple((i, j, (label,)) for i, j, label in row["ner"]))
        for row in rows
    ]
    prompts = [tokenizer.prompt([tokenizer.label(label) for label in row["ner_labels"]]) for row in rows]
    batch = tokenizer.collate([(prompt, row.words) for prompt, row in zip(prompts, ours, strict=True)], 0)
    true = [
        (i, first, last - first, row["ner_labels"].index(label))
        for i, row in enumerate(rows)
        for first, last, label in row["ner"]
    ]
    optim = OptimSection(loss="focal", focal_alpha=0.75, focal_gamma=2.0) if focal else OptimSection()
    loss = span_loss(package.model(batch), torch.tensor(true).T, batch.word_counts, batch.type_counts, optim)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    loss.backward()
    expected.backward()
    mine = package.model.encoder.embeddings.word_embeddings.weight.grad
    theirs = reference.model.token_rep_layer.bert_layer.model.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(mine, theirs[: len(mine)], rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_the_benchmark_runs_both_sides(tiny_model_dir: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    tokenizer = open_package(str(tiny_model_dir)).tokenizer.backend
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(encoder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)).save_pretrained(encoder)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in examples(40)))
    script = ROOT / "benchmarks" / "training.py"
    command = [sys.executable, str(script), str(data), str(encoder), "--steps", "3", "--rounds", "1", "--batch", "2"]
    command += ["--width", "16", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(spanlake.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    rates = re.findall(
        r"^(gliner|spanlake.*?) +([\d.]+) +([\d.]+) +(\d+) +([\d.]+)x +[\d.]+ +[\d.]+x$", done.stdout, re.MULTILINE
    )
    assert [name for name, *_ in rates] == ["gliner", "spanlake, every dropout", "spanlake, head's dropout"]
    assert all(float(rate) > 0 for _, _, rate, *_ in rates), done.stdout
    assert re.search(r"data +encoder +head +loss +head, back +encoder, back +optimiser", done.stdout), done.stdout
