"""Recipes: how they are read, what is refused, the shipped ones, and the plan of a run."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import ROOT
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from spanlake.cli import main
from spanlake.data.examples import Example, Mention
from spanlake.data.prepare import prepare
from spanlake.errors import UserError
from spanlake.storage import locate
from spanlake.training.data import DevSet, recipe_data
from spanlake.training.encoders import starting_model
from spanlake.training.known_encoders import KNOWN_ENCODERS
from spanlake.training.plan import memory, plan, plan_text
from spanlake.training.recipe import ModelSection, Recipe, read_recipe

SHIPPED = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
SECTIONS = ("model", "data", "sampling", "optim", "schedule", "parallel", "checkpoint", "logging")
LEAST = {"name": "toy", "model": {"encoder": "x"}, "data": {"train": ["a.jsonl"]}}


def write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "toy.yaml", LEAST)


def test_what_a_recipe_leaves_out_is_as_in_the_paper(file: Path) -> None:
    recipe = read_recipe(file, [])
    assert (recipe.optim.encoder_lr, recipe.optim.head_lr) == (1e-5, 5e-5)
    assert (recipe.schedule.steps, recipe.schedule.warmup, recipe.schedule.decay) == (30_000, 0.1, "cosine")
    assert (recipe.model.hidden_size, recipe.model.max_width, recipe.model.dropout) == (768, 12, 0.4)
    assert (recipe.sampling.max_types, recipe.sampling.negatives, recipe.sampling.negative_ratio) == (25, "batch", 0.5)


def test_changes_reach_every_depth(file: Path) -> None:
    changes = [
        "seed=7",
        "optim.encoder_lr=2e-5",
        "parallel.workers=[1, 4]",
        "logging.mlflow.tracking_uri=sqlite:///x.db",
        "data.weights={a.jsonl: 2}",
        "model.encoder=",
        "model.encoder_config.model_type=bert",
        "model.encoder_config.hidden_size=64",
    ]
    recipe = read_recipe(file, changes[:5])
    assert (recipe.seed, recipe.optim.encoder_lr, recipe.parallel.workers) == (7, 2e-5, (1, 4))
    assert recipe.logging.mlflow is not None and recipe.logging.mlflow.tracking_uri == "sqlite:///x.db"
    assert recipe.logging.wandb is None and recipe.data.weights == {"a.jsonl": 2.0}
    assert read_recipe(file, ["parallel.workers=3"]).parallel.workers == (3, 3)
    random = read_recipe(file, ["model.encoder=''", *changes[6:]])
    assert random.model.encoder_config == {"model_type": "bert", "hidden_size": 64}


def test_a_recipe_as_resolved_can_be_read_again(file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(file, ["parallel.workers=[1,2]", "logging.wandb.project=p", "sampling.synonyms={a: [b, c]}"])
    again = read_recipe(write(tmp_path / "again.yaml", json.loads(json.dumps(recipe.to_dict()))), [])
    assert again == recipe


def test_recipes_extend_each_other(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**LEAST, "optim": {"head_lr": 1, "weight_decay": 2}, "seed": 1})
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "small.yaml", {"optim": {"weight_decay": 3}, "schedule": {"steps": 9}})
    child = {"extends": ["base.yaml", "parts/small.yaml"], "name": "child", "schedule": {"warmup": 0}}
    recipe = read_recipe(write(tmp_path / "child.yaml", child), ["optim.max_norm=4"])
    assert (recipe.name, recipe.seed) == ("child", 1)
    assert (recipe.optim.head_lr, recipe.optim.weight_decay, recipe.optim.max_norm) == (1.0, 3.0, 4.0)
    assert (recipe.schedule.steps, recipe.schedule.warmup) == (9, 0.0)
    grandchild = write(tmp_path / "grandchild.yaml", {"extends": "child.yaml", "seed": 5})
    assert read_recipe(grandchild, []).seed == 5
    for parents, message in (("loop.yaml", "leads back"), (3, "must name files"), ("none.yaml", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_recipe(write(tmp_path / "loop.yaml", {"extends": parents}), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.encoder_lrr=1", "'optim.encoder_lrr' is unknown; the nearest known one is 'optim.encoder_lr'"),
        ("optm={}", "'optm' is unknown; the nearest known one is 'optim'"),
        ("parallel.zero=1", "'parallel.zero' is unknown; the nearest known one is 'parallel.zero_stage'"),
        (
            "logging.mlflow.uri=x",
            "'logging.mlflow.uri' is unknown; the nearest known one is 'logging.mlflow.tracking_uri'",
        ),
        ("logging.wandb={}", "lacks 'logging.wandb.project'"),
        ("optim=3", "'optim' is 3; it must be a mapping of keys to values"),
        ("{1: 2}=3", "'{1: 2}' is unknown"),
        ("optim.encoder_lr=fast", "'optim.encoder_lr' is 'fast'; it must be a number"),
        ("optim.encoder_lr=.nan", "'optim.encoder_lr' is nan; it must be at least 0"),
        ("schedule.steps=1.5", "'schedule.steps' is 1.5; it must be a whole number"),
        ("schedule.steps=0", "'schedule.steps' is 0; it must be at least 1"),
        ("schedule.warmup=2", "'schedule.warmup' is 2; it must be at most 1"),
        ("schedule.decay=step", "'schedule.decay' is 'step'; it must be 'cosine', 'linear' or 'constant'"),
        ("sampling.negative_ratio=1", "'sampling.negative_ratio' is 1; it must be at most 0.95"),
        ("sampling.drop_types=1", "'sampling.drop_types' is 1; it must be true or false"),
        ("parallel.zero_stage=4", "'parallel.zero_stage' is 4; it must be at most 3"),
        ("parallel.zero_stage=true", "'parallel.zero_stage' is True"),
        ("parallel.workers=0", "'parallel.workers' is 0; it must be a whole number of at least 1, or a list"),
        ("parallel.workers=[2, 1]", "'parallel.workers' is [2, 1]"),
        ("parallel.precision=float8", "'parallel.precision' is 'float8'"),
        ("data.train=a.jsonl", "'data.train' is 'a.jsonl'; it must be a list"),
        ("data.train=[a, 1]", "'data.train.1' is 1; it must be a text"),
        ("data.train=[]", "'data.train' is empty"),
        ("data.train=[a, b, a]", "names 'a' more than once"),
        ("data.weights={b: 1}", "data.weights names 'b', which data.train does not"),
        ("data.weights={a.jsonl: x}", "'data.weights.a.jsonl' is 'x'; it must be a number"),
        ("data.sampling={b: {}}", "data.sampling names 'b', which data.train does not"),
        ("data.sampling={a.jsonl: 3}", "'data.sampling.a.jsonl' is 3; it must be a mapping"),
        (
            "data.sampling={a.jsonl: {levls: true}}",
            "In data.sampling for 'a.jsonl': The recipe's key 'sampling.levls' is unknown; the nearest known one is "
            "'sampling.levels'",
        ),
        (
            "data.sampling={a.jsonl: {max_types: 0}}",
            "In data.sampling for 'a.jsonl': The recipe's 'sampling.max_types' is 0; it must be at least 1",
        ),
        ("data.sampling={a.jsonl: {description_rate: 0.5}}", "needs sampling.descriptions, or data.descriptions"),
        ("sampling.broadest_rate=0.8", "are shares of the same texts: choose shares whose sum is at most 1"),
        ("data.weights={a.jsonl: 0}", "'data.weights.a.jsonl' is 0; it must be more than 0"),
        ("model.start=mini", "exactly one of model.encoder, model.encoder_config and model.start"),
        ("model.max_words=12", "model.max_words (12) must exceed model.max_width (12)"),
        ("model={encoder_config: {hidden_size: 8}}", "model.encoder_config names no model_type"),
        ("model.labels_encoder_config={hidden_size: 8}", "model.labels_encoder_config names no model_type"),
        ("model.labels_encoder_config={model_type: bert, vocab_size: 8}", "labels_encoder_config gives a vocab_size"),
        ("model={start: mini, labels_encoder: a/b}", "a labels encoder beside model.start"),
        ("model.lora={rnk: 4}", "'model.lora.rnk' is unknown; the nearest known one is 'model.lora.rank'"),
        ("model.lora={rank: 0}", "'model.lora.rank' is 0; it must be at least 1"),
        ("model.lora={publish: both}", "'model.lora.publish' is 'both'; it must be 'merged' or 'adapter'"),
        ("model.lora={targets: query}", "'model.lora.targets' is 'query'; it must be a list"),
        ("model.lora={}", "the head of a new model has random weights"),
        ("model.lora={train_head: true, publish: adapter}", "which loads over a package; name it in model.start"),
        ("sampling.description_rate=0.5", "needs sampling.descriptions, or data.descriptions"),
        ("parallel.offload=cpu", "needs parallel.zero_stage of 1, 2 or 3"),
        ("seed=-1", "'seed' is -1"),
        ("nonsense", "'nonsense' is not of the form"),
        ("a..b=1", "'a..b=1' is not of the form"),
        ("seed=[", "is no YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(file: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_recipe(file, [change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [None, *SECTIONS])
def test_whatever_a_key_is_given_a_refusal_names_it(file: Path, section: str | None) -> None:
    known = read_recipe(file, []).to_dict()
    for key in known if section is None else known[section]:
        name = f"{section}.{key}" if section else key
        for value in (
            "",
            "x",
            "true",
            "-1",
            "0.5",
            "1e99",
            ".inf",
            "[]",
            "[1]",
            "[[a]]",
            "{}",
            "{a.jsonl: [b]}",
            "{1: 2}",
        ):
            try:
                read_recipe(file, [f"{name}={value}"])
            except UserError as error:
                assert key in str(error) and "\n" not in str(error)


def test_weights_that_no_worker_has_are_not_averaged(file: Path) -> None:
    assert read_recipe(file, ["optim.average=0.9", "parallel.zero_stage=2"]).optim.average == 0.9
    with pytest.raises(UserError, match="optim.average is 0.9, but no worker has all weights at parallel.zero_stage 3"):
        read_recipe(file, ["optim.average=0.9", "parallel.zero_stage=3"])


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    for content in ("[1, 2]", "a: [", "\x00"):
        (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(UserError, match="x.yaml"):
            read_recipe(tmp_path / "x.yaml", [])


# --- the shipped recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_has_a_small_twin(path: Path) -> None:
    recipe = read_recipe(path, [])
    assert recipe.name == path.stem
    if not path.stem.endswith("-cpu"):
        twin = read_recipe(path.with_name(f"{path.stem}-cpu.yaml"), [])
        assert twin.sampling == recipe.sampling and twin.optim == recipe.optim
        assert twin.model.span_head == recipe.model.span_head and twin.schedule.decay == recipe.schedule.decay
        assert twin.schedule.steps * twin.schedule.batch_texts <= 500


def test_all_that_the_paper_names_is_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    for group, members in {
        "pile-ner": ("small", "medium", "large", "multi"),
        "ablation": ("negatives-0", "negatives-25", "negatives-50", "negatives-75", "all-types"),
        "backbone": ("bert", "roberta", "albert", "electra", "xlnet"),
        "supervised": ("20ner",),
    }.items():
        for member in members:
            recipe = read_recipe(ROOT / "jobs" / "recipes" / f"{group}-{member}.yaml", [])
            assert recipe.model.encoder in KNOWN_ENCODERS, recipe.name
            assert (recipe.optim.encoder_lr, recipe.optim.head_lr, recipe.schedule.steps) == (1e-5, 5e-5, 30_000)
    assert {"mini", "mini-types", "mini-levels"} < names


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in SHIPPED if p.stem.endswith("-cpu")], ids=lambda path: path.stem)
def test_a_small_twin_has_a_model_and_data_offline(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(path, [])
    tokenizer, model, _ = starting_model(recipe.model)
    whole = read_recipe(path.with_name(path.name.replace("-cpu", "")), []).model.encoder
    if whole in KNOWN_ENCODERS:
        assert model.config.encoder["model_type"] == KNOWN_ENCODERS[whole]["model_type"]
    assert model.encoder.get_input_embeddings().weight.shape[0] == tokenizer.backend.get_vocab_size()
    data = recipe_data(recipe, locate(str(tmp_path)))
    assert sum(prepared.rows for prepared in data.sets) == 300
    assert sum(len(dev.examples) for dev in data.dev) == 30


# --- the model and the data of a recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": "no/such-encoder"}, "`hf download no/such-encoder --local-dir DIR`"),
        ({"encoder": "microsoft/deberta-v3-small"}, "`hf download microsoft/deberta-v3-small --local-dir DIR`"),
        ({"encoder": "/no/such"}, "no encoder in '/no/such'"),
        ({"encoder_config": {"model_type": "none"}}, "'none' is unknown to the installed"),
        ({"encoder_config": {"model_type": "bert"}, "tokenizer": "nothing"}, "'nothing' is unknown"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_explained(tmp_path: Path, model: dict, message: str) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", {**LEAST, "model": model}), [])
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        starting_model(recipe.model)
    assert "\n" not in str(caught.value)


def lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_the_data_of_a_recipe_is_prepared_once_and_may_be_prepared_before(tmp_path: Path) -> None:
    record = {"tokenized_text": ["Ada", "won"], "ner": [[0, 0, "person"], [1, 1, "other"]]}
    lines(tmp_path / "a.jsonl", *[record] * 20)
    lines(tmp_path / "d.jsonl", *[{**record, "negatives": ["ship", "other type"]}] * 4)
    (tmp_path / "text.json").write_text('{"person": "a human being"}')
    prepare([str(tmp_path / "a.jsonl")], locate(str(tmp_path / "ready")))
    values = {
        **LEAST,
        "data": {
            "root": str(tmp_path),
            "train": ["a.jsonl", "ready"],
            "weights": {"ready": 3},
            "max_per_set": 10,
            "ignored_types": ["other"],
            "descriptions": "text.json",
        },
    }
    recipe = read_recipe(write(tmp_path / "r.yaml", values), ["data.held_out=1", "sampling.description_rate=1"])
    data = recipe_data(recipe, locate(str(tmp_path / "cache")))
    assert [prepared.name for prepared in data.sets] == ["a", "a"] and data.weights == (0.5, 0.5)
    assert [of_set.sampling.descriptions for of_set in data.set_types] == [{"person": "a human being"}] * 2
    assert [of_set.counts for of_set in data.set_types] == [{"person": 20}] * 2 and data.frequencies["person"] == 40
    assert data.types(recipe.data.ignored_types) == ["person"]
    assert [(dev.types, len(dev.examples)) for dev in data.dev] == [(["person"], 1)] * 2
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").rglob("*"))]
    assert recipe_data(recipe, locate(str(tmp_path / "cache"))).sets == data.sets
    assert before == [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").rglob("*"))]

    (dev,) = recipe_data(read_recipe(tmp_path / "r.yaml", ["data.dev=[d.jsonl]"]), locate(str(tmp_path / "cache"))).dev
    assert len(dev.examples) == 4 and dev.asked(dev.examples[0]) == ["other type", "person", "ship"]


def test_a_data_set_may_be_sampled_in_its_own_way(tmp_path: Path) -> None:
    """One key is other for it, the rest is as the recipe says for all."""
    record = {"text": "Ada won. Bob lost it.", "mentions": [[0, 3, ["poet", "person"]], [9, 12, ["person"]]]}
    lines(tmp_path / "a.jsonl", *[{**record, "absent": ["drug"]}] * 20)
    lines(tmp_path / "b.jsonl", *[record] * 20)
    own = {"a.jsonl": {"levels": True, "sentence_rate": 0.5, "max_types": 7}}
    values = {
        **LEAST,
        "data": {"root": str(tmp_path), "train": ["a.jsonl", "b.jsonl"], "sampling": own},
        "sampling": {"max_types": 9, "max_negatives": 3},
    }
    recipe = read_recipe(write(tmp_path / "r.yaml", values), [])
    assert recipe.sampling_of("b.jsonl") == recipe.sampling
    data = recipe_data(recipe, locate(str(tmp_path / "cache")))
    found = [(s.sampling.levels, s.sampling.max_types, s.sampling.max_negatives) for s in data.set_types]
    assert found == [(True, 7, 3), (False, 9, 3)]
    assert data.set_types[0].counts == {"poet": 20, "person": 40}
    tokenizer, model, _ = starting_model(ModelSection(start="mini"))
    stream = data.stream(recipe, tokenizer, model.config)
    assert stream.sentence_rates == (0.5, 0.0)
    again = read_recipe(write(tmp_path / "again.yaml", recipe.to_dict()), [])
    assert again == recipe


def test_a_text_of_a_set_with_thousands_of_types_is_asked_for_some() -> None:
    types = sorted(f"type {i}" for i in range(3000))
    example = Example("Ada met Bob", (Mention(0, 3, "type 7"),))
    dev = DevSet("many", types, [example])
    asked = dev.asked(example)
    assert len(asked) == len({*asked}) == 50 and {"type 7"} < {*asked} <= {*types}
    assert asked == dev.asked(example) != dev.asked(Example("Bob met Ada", example.mentions))
    few = DevSet("few", types[:50], [example])
    assert few.asked(example) == types[:50]
    full = Example("Ada", tuple(Mention(0, 3, label) for label in types[:60]))
    assert dev.asked(full) == types[:60]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.train=[none.jsonl]"], "none.jsonl; say where it is with data.root=DIRECTORY"),
        (["data.train=[empty.jsonl]"], "holds no examples"),
        (["data.train=[plain.jsonl]"], "mention no type"),
        (["data.train=[one.jsonl]"], "is left for the dev score"),
        (["data.train=[one.jsonl]", "data.dev=[none.jsonl]"], "none.jsonl; say where it is"),
        (["data.train=[one.jsonl]", "data.descriptions=none.json"], "none.json cannot be read"),
    ],
)
def test_data_that_cannot_be_trained_on_is_explained(tmp_path: Path, changes: list[str], message: str) -> None:
    lines(tmp_path / "empty.jsonl")
    lines(tmp_path / "plain.jsonl", *[{"tokenized_text": ["a"], "ner": []}] * 20)
    lines(tmp_path / "one.jsonl", {"tokenized_text": ["a"], "ner": [[0, 0, "x"]]})
    lines(tmp_path / "dev.jsonl", {"tokenized_text": ["a"], "ner": [[0, 0, "x"]]})
    file = write(tmp_path / "r.yaml", {**LEAST, "data": {"root": str(tmp_path), "train": ["x"]}})
    if "descriptions" in changes[-1]:
        changes = [*changes, "data.dev=[dev.jsonl]"]
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        recipe_data(read_recipe(file, changes), locate(str(tmp_path / "cache")))
    assert "\n" not in str(caught.value)


# --- the plan --------------------------------------------------------------------------------------------------------

# Millions of parameters of the encoders without their pooling layers, as their publishers give them: "86M backbone
# parameters with 98M in the embedding layer" for DeBERTa-v3-base, and so on.
PUBLISHED = {
    "microsoft/deberta-v3-xsmall": 22 + 48,
    "microsoft/deberta-v3-small": 44 + 98,
    "microsoft/deberta-v3-base": 86 + 98,
    "microsoft/deberta-v3-large": 304 + 131,
    "microsoft/mdeberta-v3-base": 86 + 190,
    "google-bert/bert-base-cased": 108,
    "FacebookAI/roberta-base": 125,
    "FacebookAI/xlm-roberta-base": 278,
    "FacebookAI/xlm-roberta-large": 560,
    "answerdotai/ModernBERT-base": 149,
    "answerdotai/ModernBERT-large": 395,
    "jhu-clsp/mmBERT-small": 140,
    "jhu-clsp/mmBERT-base": 307,
    "albert/albert-base-v2": 11,
    "google/electra-base-discriminator": 109,
    "xlnet/xlnet-base-cased": 117,
    "sentence-transformers/all-MiniLM-L6-v2": 22.7,
    "thenlper/gte-small": 33.4,
}


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_known_encoders_have_the_size_that_their_publishers_give(tmp_path: Path, encoder: str) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", {**LEAST, "model": {"encoder": encoder}}), [])
    assert plan(recipe).encoder / 1e6 == pytest.approx(PUBLISHED[encoder], rel=0.015)


# With the decoder and a second table of embeddings (Xue et al. 2021, table 1).
PUBLISHED_WHOLE = {"google/mt5-small": 300, "google/mt5-base": 580, "google/mt5-large": 1230}


@pytest.mark.parametrize("encoder", PUBLISHED_WHOLE)
def test_known_parts_have_the_size_that_their_publishers_give_for_the_whole(tmp_path: Path, encoder: str) -> None:
    config = AutoConfig.for_model(**KNOWN_ENCODERS[encoder])
    with torch.device("meta"):
        whole = AutoModelForSeq2SeqLM.from_config(config)
    second_table = whole.shared.weight.numel()  # which the library ties to the first
    count = sum(each.numel() for each in whole.parameters()) + second_table
    assert count / 1e6 == pytest.approx(PUBLISHED_WHOLE[encoder], rel=0.015)
    part = sum(each.numel() for name, each in whole.named_parameters() if name.startswith(("shared.", "encoder.")))
    recipe = read_recipe(write(tmp_path / "r.yaml", {**LEAST, "model": {"encoder": encoder}}), [])
    assert plan(recipe).encoder == part
    assert {*PUBLISHED, *PUBLISHED_WHOLE} == {*KNOWN_ENCODERS}


def test_the_plan_counts_the_parameters_of_the_model_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("backbone-roberta-cpu", "pile-ner-small-cpu", "mini-cpu"):
        recipe = read_recipe(ROOT / "jobs" / "recipes" / f"{name}.yaml", [])
        _, model, _ = starting_model(recipe.model)
        planned = plan(recipe)
        assert planned.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert planned.encoder == sum(parameter.numel() for parameter in model.encoder.parameters())


def test_the_plan_of_an_adapter_counts_what_is_trained(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of two layers of width 32: query and value, each with matrices of 4 x 32 and 32 x 4."""
    pytest.importorskip("peft")
    lora = {"rank": 4, "targets": ["query", "value"]}
    recipe = read_recipe(
        write(tmp_path / "r.yaml", {**LEAST, "model": {"start": str(tiny_model_dir), "lora": lora}}), []
    )
    assert plan(recipe).trained == 2 * 2 * 2 * 4 * 32
    assert "\nadapter  1,024 parameters, which alone are trained\n" in plan_text(recipe)


def test_memory_by_stage() -> None:
    """For 100 parameters on four workers: 4 + 4 + 8 bytes each, 4 + 4 + 12 with ZeRO, a quarter of what it shards."""
    used = [memory(100, 100, stage, 4, offload=False) for stage in range(4)]
    assert [(m.weights, m.gradients, m.optimiser) for m in used] == [
        (400, 400, 800),
        (400, 400, 300),
        (400, 100, 300),
        (100, 100, 300),
    ]
    offloaded = memory(100, 100, 2, 4, offload=True)
    assert (offloaded.optimiser, offloaded.on_host, offloaded.on_device) == (0, 300, 500)
    adapter = memory(100, 10, 0, 1, offload=False)
    assert (adapter.weights, adapter.gradients, adapter.optimiser) == (400, 40, 80)


def test_the_plan_in_words(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", *[{"tokenized_text": ["Ada"] * 70, "ner": [[0, 0, "person"]]}] * 50)
    prepare([str(tmp_path / "a.jsonl")], locate(str(tmp_path / "ready")))
    values = {
        **LEAST,
        "model": {"encoder": "microsoft/deberta-v3-large"},
        "data": {"root": str(tmp_path), "train": ["ready", "a.jsonl", "none"]},
        "parallel": {"workers": [2, 8], "zero_stage": 2, "gpus_per_worker": 1},
        "schedule": {"steps": 1000, "batch_texts": 5, "batch_tokens": 4000},
    }
    text = plan_text(read_recipe(write(tmp_path / "r.yaml", values), []))
    assert "434.0 M of them in the encoder (by its published configuration)" in text
    assert re.search(r"workers +2 to 8, each with 1 GPU", text)
    assert re.search(r"stage +of 1 +of 2 +of 4 +of 8", text)
    assert re.search(r"\* +2 +8\.32 GiB +4\.99 GiB +3\.33 GiB", text)
    assert "as an estimate" in text
    assert "at most 4,000,000 padded sub-words in at most 5,000 texts" in text
    assert "50 texts, 50 mentions, 1 types; if it were alone, read 100.0 times, in about 820,000 sub-words" in text
    assert "a.jsonl: here, to be prepared" in text and "none: not at" in text


def test_a_plan_takes_no_memory_for_the_weights(tmp_path: Path) -> None:
    from spanlake.training.plan import _model

    recipe = read_recipe(write(tmp_path / "r.yaml", {**LEAST, "model": {"encoder": "microsoft/deberta-v3-large"}}), [])
    model, _ = _model(recipe)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}


def test_the_plan_of_an_unknown_encoder_says_what_to_do(tmp_path: Path) -> None:
    recipe: Recipe = read_recipe(write(tmp_path / "r.yaml", {**LEAST, "model": {"encoder": "no/such"}}), [])
    with pytest.raises(UserError, match="hf download no/such"):
        plan_text(recipe)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / "jobs" / "recipes" / "pile-ner-small.yaml")
    assert main(["train", "--dry-run", recipe, "schedule.steps=10"]) == 0
    printed, _ = capsys.readouterr()
    assert "microsoft/deberta-v3-small: 153.1 M parameters" in printed and "steps    10," in printed
    assert main(["train", "--dry-run", recipe, "schedule.step=10"]) == 2
    assert "'schedule.steps'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
