"""The paper's studies: the shipped files, a run at the least size, what is not done again, and what is refused."""

import json
import shutil
from pathlib import Path
from struct import unpack

import pytest
import yaml
from commands import ROOT

from spanlake import cli
from spanlake.errors import UserError
from spanlake.evaluation.suites import SUITES
from spanlake.studies.runner import Order, _recipe
from spanlake.studies.study import SIZES, read_study
from spanlake.training.recipe import read_recipe

SHIPPED = sorted((ROOT / "jobs" / "studies").glob("*.yaml"))
STEPS = ["schedule.steps=2", "schedule.evaluate_every=2", "logging.tensorboard=false"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_names_recipes_that_can_be_read(path: Path) -> None:
    study = read_study(path)
    assert study.suite in SUITES and "Zaratiana" in study.source
    for variant in study.variants:
        for size in SIZES:
            assert study.recipe(variant, size, path.parent, STEPS[:1]).schedule.steps == 2
        assert study.paper_recipe(variant, path.parent).schedule.steps == 30_000


def test_there_is_a_study_for_each_of_the_papers() -> None:
    assert [path.stem for path in SHIPPED] == ["backbones", "data-sizes", "dropping", "negatives"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A study of two trainings on toy texts, with the recipes that it needs."""
    home = tmp_path_factory.mktemp("study")
    with open(home / "texts.jsonl", "w", encoding="utf-8") as file:
        for i in range(90):
            words = ["Ada", "met", "Curie", "in", ("London", "Warsaw", "Geneva")[i % 3], *["and"] * (i % 7)]
            file.write(json.dumps({"tokenized_text": words, "ner": [[0, 0, "person"], [4, 4, "place"]]}) + "\n")
    recipe = {
        "name": "toy",
        "model": {"start": str(tiny_model_dir)},
        "data": {"train": ["texts.jsonl"], "root": str(home), "held_out": 2},
    }
    for name in ("toy", "toy-cpu"):
        (home / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    variants = [
        {"name": "first", "recipe": "toy", "drawn": False},
        {"name": "second", "recipe": "toy", "start": "first", "series": "a", "examples": {"cpu": 20, "full": 25}},
        {"name": "third", "recipe": "toy", "series": "b", "examples": {"cpu": 20, "full": 25}},
    ]
    variants[1]["published"] = {"f1": 50.5, "source": "a table"}
    study = {
        "title": "Toys",
        "source": "a paper",
        "suite": "ood",
        "axis": "examples",
        "chart": "lines",
        "recipes": ".",
        "variants": variants,
    }
    (home / "toys.yaml").write_text(yaml.safe_dump(study))
    return home


def run(home: Path, directory: Path, *more: str) -> int:
    return cli.main(["study", str(home / "toys.yaml"), "--directory", str(directory), *STEPS, *more])


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    directory = tmp_path_factory.mktemp("done") / "toys"
    assert run(home, directory) == 0
    return directory


def test_a_study_leaves_trained_models_scores_and_a_figure(done: Path) -> None:
    figure = (done / "figure.png").read_bytes()
    width, height = unpack(">II", figure[16:24])
    assert figure.startswith(b"\x89PNG") and width > 1000 and height > 600
    pixels = pytest.importorskip("matplotlib.image").imread(done / "figure.png")
    colours = {tuple(pixel) for pixel in (pixels[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert {(31, 119, 180), (255, 127, 14), (192, 57, 43)} <= colours  # two lines and the paper's point
    results = json.loads((done / "results.json").read_text())
    assert [each["trained_on"] for each in results["variants"]] == [30, 20, 20]
    assert all(each["sets"][0]["texts"] == 60 for each in results["variants"])
    assert results["variants"][1]["paper"] == {"f1": 50.5, "source": "a table"}
    recipe = json.loads((done / "second" / "recipe.json").read_text())
    assert recipe["model"]["start"] == str(done / "first" / "package")


def test_a_variant_that_goes_on_from_a_bi_encoder_takes_its_architecture(home: Path, tmp_path: Path) -> None:
    new = ["model.start=''", "model.encoder=a/b", "model.labels_encoder=c/d"]
    order = Order(read_study(home / "toys.yaml"), home, "cpu", tmp_path, None, new)
    first, second, _ = order.study.variants
    assert _recipe(order, first, []).model.labels_encoder == "c/d"
    model = _recipe(order, second, []).model
    assert model.start == str(tmp_path / "first" / "package") and model.labels is None


def test_what_cannot_be_compared_is_said(done: Path) -> None:
    text = (done / "results.md").read_text()
    assert "| second | 20 |" in text and "50.5 (a table)" in text
    assert "schedule.steps is 2; the paper's is 30000." in text
    assert "60 example passages" in text
    assert "The paper's figures for third are not part of this study." in text


def test_the_same_command_trains_only_what_is_not_finished(
    home: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = (done / "third" / "scores.json").read_text()
    shutil.rmtree(done / "third")
    shutil.rmtree(done / "first" / "checkpoints")  # a training from the beginning would make it again
    (done / "figure.png").unlink()
    assert run(home, done) == 0
    said = capsys.readouterr().err
    assert [name for name in ("first", "second", "third") if f"{name} is already trained" in said] == [
        "first",
        "second",
    ]
    assert not (done / "first" / "checkpoints").exists()
    assert (done / "third" / "scores.json").read_text() == scores  # a training depends on its seed alone
    assert (done / "figure.png").exists()


def test_a_directory_of_another_study_is_refused(home: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, done, "optim.head_lr=0.5") == 2
    assert "optim.head_lr" in capsys.readouterr().err


def test_what_a_study_lacks_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    assert run(home, tmp_path / "x", "--size", "full") == 2
    assert "--data DIR, a directory with the sets of ood" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    assert cli.main(["study", "nonsense"]) == 2
    assert "jobs/studies: backbones, data-sizes, dropping, negatives" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chart": "pie"}, "chart"),
        ({"colour": "red"}, "colour"),
        ({"chart": "bars", "variants": [{"name": "a", "recipe": "toy"}] * 2}, "two variants"),
        ({"chart": "bars", "variants": [{"name": "a", "recipe": "toy", "start": "b"}]}, "no earlier variant"),
        ({"variants": [{"name": "../a", "recipe": "toy"}]}, "variants.0.name"),
        ({"suite": "all"}, "suite"),
        ({"variants": [{"name": "a", "recipe": "toy"}]}, "number of examples"),
    ],
)
def test_a_wrong_study_is_refused(home: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    values = {**yaml.safe_load((home / "toys.yaml").read_text()), **change}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=said):
        read_study(tmp_path / "wrong.yaml")


def test_the_negatives_study_changes_only_the_share_of_negatives() -> None:
    home = ROOT / "jobs" / "studies"
    study = read_study(home / "negatives.yaml")
    base = read_recipe(home / "../recipes/pile-ner-large.yaml", [])
    for variant, ratio in zip(study.variants, (0.0, 0.25, 0.5, 0.75), strict=True):
        recipe = study.recipe(variant, "full", home, [])
        sampling = base.sampling.model_copy(update={"negative_ratio": ratio})
        assert recipe == base.model_copy(update={"name": recipe.name, "sampling": sampling})
