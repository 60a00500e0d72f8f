"""Thresholds and scores fitted to annotated texts, and the package that uses them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spanlake import Extractor, cli
from spanlake.calibration import Calibration
from spanlake.errors import PackageError
from spanlake.evaluation.fitting import Scored, calibrated, fit, gain, micro
from spanlake.inference.settings import Settings
from spanlake.package import open_package, save_package, verify_package
from tests.conftest import tiny_model, tiny_tokenizer

TEXTS = ["Ada Lovelace met Charles Babbage in London.", "The union of nations fell in June.", "Where, Geneva?"]


def made(count: int, seed: int = 0) -> Scored:
    """Entities of two labels. Those of `easy` are right with the square root of their score, those of `hard` with its
    fourth power."""
    rng = np.random.default_rng(seed)
    score, label = rng.uniform(0.02, 1, count), rng.choice(["easy", "hard"], count)
    right = rng.random(count) < np.where(label == "easy", score**0.5, score**4)
    half = np.arange(count) % 2
    gold = tuple(Counter(label[right & (half == i)].tolist() + ["easy", "hard"] * 10) for i in (0, 1))
    return Scored(half, label, score, right, gold)  # type: ignore[arg-type]


def test_each_label_gets_the_threshold_that_is_best_for_all_together():
    scored = made(4000)
    fitted = fit(scored)
    assert fitted.thresholds["easy"] < fitted.threshold < fitted.thresholds["hard"]
    best = micro(scored.counted(fitted)).f1
    for label in fitted.thresholds:
        for other in np.linspace(0.02, 0.98, 40):
            changed = Calibration(fitted.scale, fitted.shift, 0.5, {**fitted.thresholds, label: float(other)})
            assert micro(scored.counted(changed)).f1 <= best + 1e-3  # between points of the grid there may be better
    assert micro(scored.counted(Calibration())).f1 < best


def test_calibrated_scores_are_shares_of_right_entities():
    scored = made(20_000)
    score = calibrated(scored.score, fit(scored))
    for low in (0.2, 0.4, 0.6):
        chosen = (score > low) & (score < low + 0.2)
        assert scored.right[chosen].mean() == pytest.approx(score[chosen].mean(), abs=0.06)


def test_scores_that_are_probabilities_already_stay_as_they_are():
    rng = np.random.default_rng(1)
    score = rng.uniform(0.02, 0.98, 50_000)
    right = rng.random(50_000) < score
    gold = (Counter(a=int(right.sum())), Counter[str]())
    fitted = fit(Scored(np.zeros(50_000, dtype=int), np.full(50_000, "a"), score, right, gold))
    assert (fitted.scale, fitted.shift) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=0.05))


def test_the_gain_is_that_on_other_texts():
    learnable, noise = gain(made(6000)), made(300)
    assert micro(learnable.after).f1 > micro(learnable.before).f1
    assert learnable.error_after < learnable.error_before / 2
    rng = np.random.default_rng(2)
    chance = Scored(noise.half, noise.label, noise.score, rng.random(300) < 0.5, noise.gold)
    assert micro(gain(chance).after).f1 < micro(chance.counted(fit(chance))).f1  # less than where it was fitted


def test_rare_labels_have_no_threshold_of_their_own():
    scored = made(4000)
    label = scored.label.copy()
    label[:30] = "rare"
    gold = (scored.gold[0] + Counter(rare=9), scored.gold[1] + Counter(rare=9))
    fitted = fit(Scored(scored.half, label, scored.score, scored.right, gold))
    assert sorted(fitted.thresholds) == ["easy", "hard"]
    assert fitted.threshold_of("rare") == fitted.threshold_of("never seen") == fitted.threshold


@pytest.mark.parametrize("right", [True, False])
def test_without_right_and_wrong_entities_there_is_nothing_to_fit(
    tiny_model_dir: Path, tmp_path: Path, right: bool, capsys: pytest.CaptureFixture[str]
):
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    found = extractor.extract(TEXTS[:1], ["person"], 0.02)[0]
    mentions = [{"start": e.start, "end": e.end, "label": "person"} for e in found] if right else []
    mentions = mentions or [{"start": 1, "end": 2, "label": "person"}]
    (tmp_path / "a_dev.jsonl").write_text(json.dumps({"text": TEXTS[0], "mentions": mentions}))
    call = ["calibrate", "--data", str(tmp_path), "--model", str(tiny_model_dir), "--output", str(tmp_path / "out")]
    assert cli.main([*call, "--device", "cpu", "--precision", "float32"]) == 2
    assert "needs right ones and wrong ones" in capsys.readouterr().err


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a package with scores of every size, which the shared random model has not."""
    directory = tmp_path_factory.mktemp("tiny") / "package"
    tokenizer = tiny_tokenizer()
    save_package(
        directory, tiny_model(tokenizer, seed=7), tokenizer, name="tiny", metadata={}, card="Random weights.\n"
    )
    return directory


@pytest.fixture(scope="module")
def package(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on texts in which the model finds half of the persons and none of the places."""
    directory = tmp_path_factory.mktemp("calibrated")
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    names = "Ada", "Marie Curie", "Pierre", "Warsaw", "June", "Canada", "Alain", "Union"
    texts = [f"{text} {name}" for text in TEXTS for name in names]
    records = []
    for text, entities in zip(texts, extractor.extract(texts, ["person", "place"], 0.3), strict=True):
        persons = [{"start": e.start, "end": e.end, "label": "Person"} for e in entities if e.label == "person"]
        records.append({"text": text, "mentions": [*persons, {"start": 0, "end": 1, "label": "place"}]})
    (directory / "texts_dev.jsonl").write_text("\n".join(map(json.dumps, records)))
    call = ["calibrate", "--data", str(directory), "--model", str(tiny_model_dir), "--name", "tiny-calibrated"]
    call += ["--output", str(directory / "package"), "--device", "cpu", "--precision", "float32"]
    assert cli.main(call) == 0
    return directory / "package"


def test_a_calibrated_package_says_so_and_is_another_one(package: Path, tiny_model_dir: Path):
    opened, before = open_package(str(package)), open_package(str(tiny_model_dir))
    assert opened.name == "tiny-calibrated" and opened.fingerprint != before.fingerprint
    assert opened.calibration and opened.calibration.thresholds["place"] > opened.calibration.thresholds["person"]
    said = opened.metadata["calibration"]
    assert said["data"] == ["texts"] and said["held_out"]["after"]["f1"] > said["held_out"]["before"]["f1"]


def test_its_thresholds_hold_where_none_are_asked_for(package: Path, tiny_model_dir: Path):
    raw, own = (Extractor.load(str(each), device="cpu", precision="float32") for each in (tiny_model_dir, package))
    calibration = own.package.calibration
    assert calibration
    labels = ["person", "place", "thing"]
    thresholds = [calibration.threshold_of(label) for label in labels]
    found = own.extract(TEXTS, labels)
    assert found == own.extract(TEXTS, labels, threshold=thresholds) and sum(map(len, found))
    assert found != own.extract(TEXTS, labels, threshold=0.5)
    described = own.extract(TEXTS, {"p": "person", "q": "Place", "r": "thing"})
    assert [[(e.start, e.end) for e in each if e.label == "p"] for each in described] == [
        [(e.start, e.end) for e in each if e.label == "person"] for each in found
    ]
    low = raw.extract(TEXTS, labels, threshold=0.01)
    scores = {(i, e.start, e.end): e.score for i, entities in enumerate(low) for e in entities}
    for i, entities in enumerate(own.extract(TEXTS, labels, threshold=0.0)):
        for e in entities:
            if (i, e.start, e.end) in scores:
                expected = calibrated(np.array([scores[i, e.start, e.end]]), calibration)[0]
                assert e.score == pytest.approx(expected, abs=1e-4)


def test_settings_take_the_models_thresholds_only_where_none_are_asked_for():
    calibration = Calibration(threshold=0.3, thresholds={"person": 0.2})
    assert Settings.make(["Person", "dog"]).calibrated(calibration).thresholds == (0.2, 0.3)
    assert Settings.make(["Person", "dog"], 0.5).calibrated(calibration).thresholds == (0.5, 0.5)
    assert Settings.make(["person"]).calibrated(None).thresholds == (0.5,)


def test_evaluation_uses_the_models_thresholds(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    call = ["evaluate", "--data", str(package.parent), "--split", "dev", "--model", str(package), "--device", "cpu"]
    call += ["--precision", "float32"]
    assert cli.main([*call, "--json", "--report", str(tmp_path / "r.html")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["threshold"] is None
    assert document["sets"][0]["f1"] >= open_package(str(package)).metadata["calibration"]["held_out"]["before"]["f1"]
    assert "Exact match at the model's own thresholds" in (tmp_path / "r.html").read_text().replace("&#39;", "'")
    assert cli.main([*call, "--json", "--threshold", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 0.5


def test_calibrating_again_starts_from_the_models_own_scores(package: Path, tmp_path: Path):
    call = ["calibrate", "--data", str(package.parent), "--model", str(package), "--output", str(tmp_path / "again")]
    assert cli.main([*call, "--device", "cpu", "--precision", "float32"]) == 0
    assert open_package(str(tmp_path / "again")).fingerprint == open_package(str(package)).fingerprint


def copied(package: Path, directory: Path) -> Path:
    directory.mkdir()
    for path in package.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.9}, "has been altered"),
        ({"threshold": 9}, "threshold outside 0 to 1"),
        ({"scale": 0}, "the scale 0"),
        ({"thresholds": None}, "misstates"),
    ],
)
def test_an_altered_calibration_is_refused(package: Path, tmp_path: Path, change: dict, message: str):
    copy = copied(package, tmp_path / "copy")
    manifest = json.loads((copy / "spanlake.json").read_text())
    manifest["calibration"] |= change
    (copy / "spanlake.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=message):
        verify_package(copy)


def test_nothing_is_written_over(package: Path, tiny_model_dir: Path):
    call = ["calibrate", "--data", str(package.parent), "--model", str(tiny_model_dir), "--output", str(package)]
    assert cli.main(call) == 2
