"""The command line: what it prints, where, and how it exits."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from spanlake import Extractor, cli
from spanlake.package import load_package, save_package

SOURCE_ROOT = ROOT / "platform"
TEXT = "Ada Lovelace met Charles Babbage in London; the Union of Nations met in Geneva."
LOW = ["--labels", "person, place", "--threshold", "0.4", "--precision", "float32", "--device", "cpu"]

Captured = pytest.CaptureFixture[str]


def spanlake(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Runs the command in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT), **options.pop("environment", {})}
    command = [sys.executable, "-m", "spanlake.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, **options)


def refusal(captured: Captured, *arguments: str) -> str:
    """Runs a command that must refuse its arguments, and returns its message: one line on stderr, nothing on stdout."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse exits in this way
        code = stop.code  # type: ignore[assignment]
    out, err = captured.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("spanlake: ") and err.count("\n") == 1 and err.endswith(".\n")
    return err


@pytest.fixture
def model(tiny_model_dir: Path) -> str:
    return str(tiny_model_dir)


# --- in a new process -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_prints_one_json_document(model: str):
    given = b"Ada met Charles.\r\n\nMarie Curie \xff in Montr\xc3\xa9al\n"
    done = spanlake("predict", TEXT, "-", "--json", "--model", model, *LOW, input=given)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    texts = [TEXT, "Ada met Charles.", "", "Marie Curie \ufffd in Montréal"]
    extractor = Extractor.load(model, device="cpu", precision="float32")
    expected = extractor.extract(texts, ["person", "place"], threshold=0.4)
    assert expected[0] and expected[3]
    found = json.loads(done.stdout)
    assert [[{**entity, "score": 0} for entity in entities] for entities in found] == [
        [{**entity.to_dict(), "score": 0} for entity in entities] for entities in expected
    ]
    # Another process may have another number of lanes, and the last bits of a score depend on what is read together.
    scores = [entity["score"] for entities in found for entity in entities]
    assert scores == pytest.approx([entity.score for entities in expected for entity in entities], abs=1e-5)
    assert done.stdout.count(b"\n") == 1


@pytest.mark.slow
def test_a_wrong_call_exits_with_two_and_one_line():
    done = spanlake("predict", TEXT, "--model", "no-such-model", *LOW)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().startswith("spanlake: The model 'no-such-model' is unknown")
    assert done.stderr.count(b"\n") == 1


def test_help_answers_without_torch():
    program = "import sys\nfrom spanlake import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n"
    program += "    heavy = {'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)\n"
    program += "    assert not heavy, heavy\n    raise\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    for arguments in (["--help"], ["predict", "--help"], ["extract", "--help"], ["predict"]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
        assert ("usage: spanlake" in done.stdout) == ("--help" in arguments)


@pytest.mark.slow
def test_a_closed_output_pipe_does_not_crash_the_command(model: str):
    command = [sys.executable, "-m", "spanlake.cli", "package", "inspect", model]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_prints_a_line_for_each_entity(model: str, capfd: Captured):
    assert cli.main(["predict", TEXT, "nothing \udcff", "--model", model, *LOW]) == 0
    out, err = capfd.readouterr()
    extractor = Extractor.load(model, device="cpu", precision="float32")
    first, second = extractor.extract([TEXT, "nothing \ufffd"], ["person", "place"], threshold=0.4)
    expected = [*first, f"({len(first)} entities)", *second, f"({len(second)} entities)"]
    lines = [e if isinstance(e, str) else f"{e.start}-{e.end}\t{e.label}\t{e.score:.2f}\t{e.text}" for e in expected]
    assert out.splitlines() == lines
    assert err == ""


def test_an_entity_over_two_lines_is_printed_on_one(model: str, capfd: Captured):
    text = TEXT.replace(" ", "\n")
    entities = Extractor.load(model, device="cpu", precision="float32").extract(
        [text], ["person", "place"], threshold=0.4
    )
    assert any("\n" in entity.text for entity in entities[0])
    assert cli.main(["predict", text, "--model", model, *LOW]) == 0
    assert len(capfd.readouterr().out.splitlines()) == len(entities[0]) + 1


def test_predict_reads_labels_with_commas_and_from_a_file(model: str, tmp_path: Path, capfd: Captured):
    labels = {"who": "person, alive or dead", "where": "place"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    extractor = Extractor.load(model, device="cpu", precision="float32")
    for argument, given in (
        ('"person, alive or dead",place', [*labels.values()]),
        (f"@{tmp_path}/labels.json", labels),
    ):
        call = ["predict", TEXT, "--json", "--model", model, *LOW, "--labels", argument]
        assert cli.main(call) == 0
        [expected] = extractor.extract([TEXT], given, threshold=0.4)
        assert json.loads(capfd.readouterr().out) == [[entity.to_dict() for entity in expected]] != [[]]


def test_predict_takes_thresholds_of_labels(model: str, tmp_path: Path, capfd: Captured):
    (tmp_path / "labels.yaml").write_text("person: {threshold: 0}\nplace: {threshold: 1}\n")
    extractor = Extractor.load(model, device="cpu", precision="float32")
    for options, thresholds in (
        (["--labels", "person,place", "--threshold", "0.4", "--threshold", "place=1"], [0.4, 1]),
        (["--labels", "person,place", "--threshold", "place=0"], [0.5, 0]),
        (["--labels", f"@{tmp_path}/labels.yaml", "--threshold", "0.4"], [0, 1]),
        (["--labels", f"@{tmp_path}/labels.yaml", "--threshold", "place=0.3"], [0, 0.3]),
    ):
        assert cli.main(["predict", TEXT, "--json", "--model", model, *LOW[4:], *options]) == 0
        [expected] = extractor.extract([TEXT], ["person", "place"], threshold=thresholds)
        assert json.loads(capfd.readouterr().out) == [[entity.to_dict() for entity in expected]]


def test_predict_asks_for_nested_and_several_labels(model: str, capfd: Captured):
    assert cli.main(["predict", TEXT, "--json", "--nested", "--multi-label", "--model", model, *LOW]) == 0
    extractor = Extractor.load(model, device="cpu", precision="float32")
    asked = {"threshold": 0.4, "nested": True, "multi_label": True}
    [expected] = extractor.extract([TEXT], ["person", "place"], **asked)
    assert json.loads(capfd.readouterr().out) == [[entity.to_dict() for entity in expected]]
    assert len(expected) > len(extractor.extract([TEXT], ["person", "place"], threshold=0.4)[0])


def test_predict_with_no_lines_to_read(model: str, capfd: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert cli.main(["predict", "-", "-", "--json", "--model", model, *LOW]) == 0
    assert json.loads(capfd.readouterr().out) == []


def test_json_output_is_valid_in_a_terminal_of_any_encoding(model: str, monkeypatch: pytest.MonkeyPatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["predict", "Montréal 😀 met Ada", "--json", "--model", model, *LOW[:3], "0", *LOW[4:]]) == 0
    assert cli.main(["predict", "Montréal 😀 met Ada", "--model", model, *LOW[:3], "0", *LOW[4:]]) == 0
    document, *lines = out.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert "".join(entity["text"].replace(" ", "") for entity in json.loads(document)[0]) == "Montréal😀metAda"
    assert any("Montr\\xe9al" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threshold", "1.5"], "1.5"),
        (["--threshold", "nan"], "nan"),
        (["--threshold", "high"], "'high'"),
        (["--threshold", "film=0.5"], "'film'"),
        (["--labels", ""], "no labels"),
        (["--labels", "a,,b"], "''"),
        (["--labels", "person,<<ENT>>"], "'<<ENT>>'"),
        (["--labels", 'person,"city'], "double quotes"),
        (["--labels", "@no/such/file"], "no/such/file"),
        (["--model", "no-such-model"], "'no-such-model'"),
        (["--model", "some/where"], "'some/where'"),
        (["--model", "/"], "spanlake.json"),
        (["--device", "gpu"], "'gpu'"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--precision", "float64"], "'float64'"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_wrong_options_are_refused_in_one_line(model: str, capfd: Captured, options: list[str], says: str):
    assert says in refusal(capfd, "predict", TEXT, "--model", model, *LOW, *options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["predict", TEXT], "--labels"),
        (["predict", "--labels", "a"], "TEXT"),
        (["package"], "ACTION"),
        (["package", "import", "x"], "directory"),
        (["evaluate", "--data", "/nothing"], "/nothing holds no benchmark set"),
        (["evaluate", "--data", ".", "--split", "all"], "'all'"),
    ],
)
def test_incomplete_calls_are_refused_in_one_line(capfd: Captured, arguments: list[str], says: str):
    assert says in refusal(capfd, *arguments)


# --- package ----------------------------------------------------------------------------------------------------------


def test_package_inspect_and_verify(model: str, capfd: Captured):
    package = load_package(Path(model))
    assert cli.main(["package", "inspect", model]) == 0
    described = json.loads(capfd.readouterr().out)
    assert (described["name"], described["fingerprint"]) == ("tiny", package.fingerprint)
    assert described["parameters"] == sum(parameter.numel() for parameter in package.model.parameters())
    assert described["architecture"] == package.config.to_dict()
    assert cli.main(["package", "verify", model]) == 0
    assert package.fingerprint in capfd.readouterr().out


def test_package_import_in_int8_and_export(model: str, tmp_path: Path, capfd: Captured):
    small, published, back = (str(tmp_path / name) for name in ("small", "published", "back"))
    assert cli.main(["package", "import", model, small, "--int8", "--name", "tiny-8"]) == 0
    assert cli.main(["package", "export", small, published]) == 0
    assert cli.main(["package", "import", published, back]) == 0
    capfd.readouterr()
    kept, again = load_package(Path(small)), load_package(Path(back))
    assert (kept.name, kept.metadata["weights"]) == ("tiny-8", "int8")
    assert (again.name, again.metadata["weights"]) == ("published", "float32")
    labels = ["person", "place"]
    one, other = (
        Extractor.load(each, device="cpu", precision="float32").extract([TEXT], labels, threshold=0.4)
        for each in (small, back)
    )
    assert one == other != [[]]


def test_package_commands_refuse_to_overwrite_files(model: str, tmp_path: Path, capfd: Captured):
    (tmp_path / "mine.txt").write_text("precious")
    for action in ("import", "export"):
        assert "is not empty" in refusal(capfd, "package", action, model, str(tmp_path))
        assert "is a file" in refusal(capfd, "package", action, model, str(tmp_path / "mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_package_export_refuses_a_head_without_a_published_form(model: str, tmp_path: Path, capfd: Captured):
    package = load_package(Path(model))
    values = {**package.config.to_dict(), "span_head": "paper"}
    other = type(package.model)(type(package.config).from_dict(values))
    save_package(tmp_path / "paper", other, package.tokenizer.backend, name="paper", metadata={}, card="")
    assert "'paper'" in refusal(capfd, "package", "export", str(tmp_path / "paper"), str(tmp_path / "out"))


def test_package_verify_refuses_an_altered_package(model: str, tmp_path: Path, capfd: Captured):
    for path in Path(model).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + " ")
    assert "altered" in refusal(capfd, "package", "verify", str(tmp_path))


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(model: str, tmp_path: Path) -> Path:
    """A benchmark set of one text. Its mentions are all entities that the model finds, except the last."""
    extractor = Extractor.load(model, device="cpu", precision="float32")
    [found] = extractor.extract([TEXT], ["person", "place"], threshold=0.4)
    entities = [{"name": e.text, "type": e.label, "pos": [e.start, e.end]} for e in found[:-1]]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "labels.json").write_text('["person", "place"]')
    (tmp_path / "set" / "test.json").write_text(json.dumps([{"sentence": TEXT, "entities": entities}]))
    return tmp_path


def test_evaluate(model: str, benchmark: Path, capfd: Captured):
    call = ["evaluate", "--data", str(benchmark), "--model", model, *LOW[2:]]
    assert cli.main([*call, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["model"] == {"name": "tiny", "fingerprint": load_package(Path(model)).fingerprint}
    [scores] = document["sets"]
    assert scores["name"] == "set" and scores["recall"] == 100 and scores["gold"] == scores["predicted"] - 1
    assert cli.main(call) == 0
    assert capfd.readouterr().out.startswith(f"set: F1 {scores['f1']:.1f}, precision {scores['precision']:.1f}, recall")


def test_evaluate_refuses_a_set_that_cannot_be_read(model: str, benchmark: Path, capfd: Captured):
    call = ("evaluate", "--data", str(benchmark), "--model", model)
    assert "1.5" in refusal(capfd, *call, "--threshold", "1.5")
    (benchmark / "set" / "test.json").write_text('[{"sentence": 5}]')
    assert "Record 0" in refusal(capfd, *call)
