"""The recipe, the loss, and a run from an encoder to a package that finds what it was taught."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from spanlake.errors import ShortfallError
from spanlake.inference.extractor import Extractor
from spanlake.storage import locate
from spanlake.training.command import _prepare
from spanlake.training.processes import train_here
from spanlake.training.recipe import Recipe, read_recipe

CITIES = ["paris", "oslo", "cairo", "lima", "rome"]
PEOPLE = ["ada", "alan", "grace", "linus", "marie"]
OTHERS = ["visited", "left", "loves", "and", "saw", "near"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "person", "city", *CITIES, *PEOPLE, *OTHERS]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture
def recipe_file(tmp_path: Path, encoder: Path) -> Path:
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for i in range(400):
            person, city, verb = PEOPLE[i % 5], CITIES[i // 5 % 5], OTHERS[i % 6]
            words = [person, verb, city] if i % 2 else [city, verb, person]
            spans = [[0, 0, "person"], [2, 2, "city"]] if i % 2 else [[0, 0, "city"], [2, 2, "person"]]
            file.write(json.dumps({"tokenized_text": words, "ner": spans}) + "\n")
    recipe = {
        "name": "toy",
        "model": {"encoder": str(encoder), "hidden_size": 64, "dropout": 0.0, "encoder_dropout": 0.0},
        "data": {"root": str(tmp_path), "train": ["train.jsonl"], "held_out": 20},
        "optim": {"encoder_lr": 1e-3, "head_lr": 1e-3},
        "sampling": {"negatives": "own", "drop_types": False},
        "schedule": {"steps": 250, "evaluate_every": 125, "batch_texts": 16},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe: Recipe, directory: Path) -> Path:
    train_here(recipe, locate(str(directory)), _prepare)
    return directory / "package"


@pytest.mark.slow
def test_a_run_ends_in_a_package_that_finds_what_it_was_taught(recipe_file: Path, tmp_path: Path) -> None:
    package = train(read_recipe(recipe_file, []), tmp_path / "run")
    extractor = Extractor.load(str(package), precision="float32")
    (entities,) = extractor.extract(["Linus left Oslo"], ["person", "city"])
    assert [(e.text, e.label) for e in entities] == [("Linus", "person"), ("Oslo", "city")]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(record.get("dev_f1", 0.0) for record in records) > 0.9
    assert extractor.package.metadata["labels_seen"] == ["city", "person"]


def test_the_same_recipe_trains_the_same_weights(recipe_file: Path, tmp_path: Path) -> None:
    changes = ["schedule.steps=5", "schedule.evaluate_every=5"]
    fingerprints = {
        Extractor.load(str(train(read_recipe(recipe_file, changes), tmp_path / name))).package.fingerprint
        for name in ("a", "b")
    }
    assert len(fingerprints) == 1


def test_a_loss_that_is_not_finite_stops_the_run(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ShortfallError, match="loss of step"):
        train(read_recipe(recipe_file, ["optim.encoder_lr=1e30", "schedule.warmup=0"]), tmp_path / "run")
