"""Labels of bi-encoders: encoded once, kept on disk by the model's fingerprint, and scored part by part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spanlake.cli import main
from spanlake.errors import PackageError, UserError
from spanlake.export.runtimes import write_runtime
from spanlake.inference import reading
from spanlake.inference.extractor import Extractor
from spanlake.inference.label_vectors import store_labels, vectors_path
from spanlake.inference.settings import Settings
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.gliner_format import write_gliner
from spanlake.package import open_package, repack
from tests.support.bi_encoder import save_bi_encoder

TEXTS = ["Ada Lovelace met Charles Babbage in London.", "", "Marie Curie said: radium! " * 12, "Geneva"]
LABELS = [f"label {i}" for i in range(60)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bi_encoder(tmp_path_factory.mktemp("bi") / "package")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many labels each pass of a labels encoder has read."""
    counts: list[int] = []
    real = BiEncoderModel.type_vectors

    def counted(self: BiEncoderModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counts.append(len(ids))
        return real(self, ids, mask)

    monkeypatch.setattr(BiEncoderModel, "type_vectors", counted)
    return counts


def load(directory: Path, precision: str = "float32") -> Extractor:
    return Extractor.load(str(directory), device="cpu", precision=precision)


def candidates(extractor: Extractor, labels: list[str]) -> dict[tuple[int, int, int, str], float]:
    """The score of each span and label above a low threshold, of all texts in one pass."""
    settings = Settings.make(labels, 0.2)
    rows = [row for _, rows in extractor.plan([(i, text, settings) for i, text in enumerate(TEXTS)]) for row in rows]
    found = extractor.scorer.submit(extractor.scorer.prepare(rows)).result()
    columns = found.text, found.start, found.end, found.label, found.score
    places = zip(*(column.tolist() for column in columns), strict=True)
    return {(text, start, end, labels[label]): score for text, start, end, label, score in places}


@pytest.mark.parametrize("head", ["marker_v0", "marker", "paper", "token_level"])
def test_many_labels_at_once_score_as_each_by_itself(
    home: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int], head: str
) -> None:
    extractor = load(save_bi_encoder(home / head, span_head=head))
    expected = {key: score for label in LABELS for key, score in candidates(extractor, [label]).items()}
    assert len(expected) > 100
    assert sum(encoded) == len(LABELS)  # however many texts and calls there were
    for most in (1 << 22, 1 << 12, 1):  # logits at once: all, several labels, one label
        monkeypatch.setitem(reading._MOST_LOGITS, "cpu", most)
        found = candidates(load(home / head), LABELS)
        assert found.keys() == expected.keys()
        assert [found[key] for key in expected] == pytest.approx([*expected.values()], abs=1e-5)


def test_texts_of_one_pass_have_labels_of_their_own(directory: Path) -> None:
    with load(directory) as extractor:
        sets = [["person"], LABELS, ["city", "person"], {"town": "city"}]
        together = extractor.extract(TEXTS, sets, 0.5)
        assert together == [extractor.extract([text], labels, 0.5)[0] for text, labels in zip(TEXTS, sets, strict=True)]
        assert sum(map(len, together)) > 3


def test_stored_labels_are_not_encoded_again(
    directory: Path, encoded: list[int], capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    before = load(directory).extract(TEXTS, LABELS[:40], 0.5)
    encoded.clear()
    (home / "labels.txt").write_text("\n".join(LABELS[:30]), encoding="utf-8")
    assert main(["labels", str(directory), "--labels", f"@{home / 'labels.txt'}"]) == 0
    assert main(["labels", str(directory), "--labels", ",".join(LABELS[20:40]), "--device", "cpu"]) == 0
    assert "40 labels, 10 of them new" in capsys.readouterr().out
    assert sum(encoded) == 40
    encoded.clear()
    assert load(directory).extract(TEXTS, LABELS[:40], 0.5) == before
    assert not encoded
    load(directory, "bfloat16").extract(TEXTS, LABELS[:41], 0.5)  # the vectors do not depend on the precision
    assert encoded == [1]


def test_a_label_cache_of_another_model_is_refused(directory: Path, home: Path) -> None:
    other = save_bi_encoder(home / "other", seed=2)
    path, _, _ = store_labels(str(other), ["person"], torch.device("cpu"))
    mine = vectors_path(open_package(str(directory)).fingerprint)
    shutil.copy(path, mine)
    with pytest.raises(PackageError, match="is of another model, with the fingerprint"):
        load(directory)


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"\x80\x04."])
def test_a_damaged_label_cache_is_refused(directory: Path, damage: Callable[[bytes], bytes]) -> None:
    path, _, _ = store_labels(str(directory), ["person"], torch.device("cpu"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PackageError, match="cannot be read .*; delete it, then run `spanlake labels` again"):
        load(directory)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"vectors": torch.zeros(1, 5)}, "no float32 vector of 24 numbers for each of its 1 labels"),
        ({"vectors": torch.zeros(1, 24).half()}, "no float32 vector"),
        ({"labels": torch.tensor([*b"[3]"], dtype=torch.uint8)}, "not a list of strings"),
        ({"labels": torch.tensor([*b'{"a": 1}'], dtype=torch.uint8)}, "not a list of strings"),
    ],
    ids=["another width", "another precision", "numbers", "no list"],
)
def test_a_label_cache_whose_parts_do_not_fit_is_refused(
    directory: Path, damage: dict[str, torch.Tensor], says: str
) -> None:
    path, _, _ = store_labels(str(directory), ["person"], torch.device("cpu"))
    save_file({**load_file(path), **damage}, path)
    for use in (load, lambda model: store_labels(str(model), ["place"], torch.device("cpu"))):
        with pytest.raises(PackageError, match=f"cannot be read .*{says}.*delete it"):
            use(directory)


def test_a_cache_that_cannot_be_written_is_named(directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    with pytest.raises(PackageError, match="cannot be written .*; name a directory for it in XDG_CACHE_HOME"):
        store_labels(str(directory), ["person"], torch.device("cpu"))


def test_other_users_can_read_a_label_cache(directory: Path, home: Path) -> None:
    path, _, _ = store_labels(str(directory), ["person"], torch.device("cpu"))
    (home / "like-others").touch()
    assert path.stat().st_mode == (home / "like-others").stat().st_mode


def test_a_model_with_prompts_has_no_label_cache(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", str(tiny_model_dir), "--labels", "person"]) == 2
    assert "tiny reads labels together with each text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "says"), [("[SEP]", "reserves"), ("\u200b", "no characters"), ("ada " * 95, "at most 96, so shorten")]
)
def test_labels_that_the_model_cannot_read_are_refused(directory: Path, label: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(directory).extract(["Geneva"], [label])


def test_the_labels_tokenizer_is_part_of_the_package(directory: Path, home: Path) -> None:
    int8 = home / "int8"
    repack(open_package(str(directory)), int8, name="apart", int8=True)
    assert load(int8).extract(["Ada Lovelace"], ["person"], 0.0)
    (int8 / "labels_tokenizer.json").write_text((int8 / "labels_tokenizer.json").read_text() + " ")
    with pytest.raises(PackageError, match="has been altered"):
        open_package(str(int8))
    (int8 / "labels_tokenizer.json").unlink()
    with pytest.raises(PackageError, match="it has no labels_tokenizer.json"):
        open_package(str(int8))


def test_there_is_no_graph_for_other_runtimes(directory: Path, home: Path) -> None:
    with pytest.raises(PackageError, match="apart is a bi-encoder, which has no graph for onnx"):
        write_runtime(open_package(str(directory)), home / "onnx", "onnx")


def test_a_labels_encoder_that_the_gliner_library_cannot_run_is_not_exported(home: Path) -> None:
    umt5 = {"model_type": "umt5", "vocab_size": 200, "d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    package = open_package(str(save_bi_encoder(home / "umt5", labels_encoder={**umt5, "d_ff": 32})))
    with pytest.raises(PackageError, match="an encoder of the type 'umt5', which the gliner library cannot run"):
        write_gliner(home / "written", package.model, package.tokenizer.backend)
