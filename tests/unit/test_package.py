"""Tests the model package: it is saved whole, loads the same model, and is refused after any change."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from spanlake import Entity, Extractor, package
from spanlake.errors import PackageError, UserError
from spanlake.modeling.families import unfilled_model
from spanlake.modeling.model import SpanModel
from spanlake.package import Package, load_package, open_package, repack, save_package

TEXT = "Ada Lovelace met Charles Babbage in London; the Union of Nations met in Geneva."
LABELS = ["person", "place"]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> Package:
    return load_package(tiny_model_dir)


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny package, for tests that damage it."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def save(directory: Path, tiny: Package, **changes: Any) -> str:
    content: dict[str, Any] = {"model": tiny.model, "tokenizer": tiny.tokenizer.backend, "name": "tiny"}
    return save_package(directory, **{**content, "metadata": {}, "card": "", **changes})


def edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "spanlake.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reseal(directory: Path) -> None:
    """Writes the right fingerprint again, so that loading reaches the check under test."""
    manifest = json.loads((directory / "spanlake.json").read_text())
    edit_manifest(directory, fingerprint=package._fingerprint(directory, manifest))


def refusal(action: Callable[..., Any], *args: Any) -> str:
    """Returns the message of the `PackageError` that the action raises, which must be one sentence on one line."""
    with pytest.raises(PackageError) as caught:
        action(*args)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 600
    assert not re.search(r"[a-z)]\. [A-Z]", message), message
    return message


# --- save and load ----------------------------------------------------------------------------------------------------


def test_float32_weights_are_loaded_bit_for_bit(tiny: Package, tmp_path: Path):
    fingerprint = save(tmp_path / "again", tiny, metadata={"license": "MIT", "labels_seen": ["a"]}, card="# Card\n")
    again = load_package(tmp_path / "again")
    assert again.fingerprint == fingerprint
    assert again.config == tiny.config
    assert again.metadata == {
        **{"format": 1, "name": "tiny", "weights": "float32"},
        **{"license": "MIT", "labels_seen": ["a"]},
    }
    for key, tensor in tiny.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor), key
    assert again.tokenizer.backend.to_str() == tiny.tokenizer.backend.to_str()
    assert (tmp_path / "again" / "README.md").read_text() == "# Card\n"
    assert not again.model.training


def test_int8_weights_are_close_and_take_a_quarter_of_the_size(tiny: Package, tmp_path: Path):
    save(tmp_path / "float32", tiny)
    save(tmp_path / "int8", tiny, int8=True)
    again = load_package(tmp_path / "int8")
    for key, tensor in tiny.model.state_dict().items():
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127 if tensor.dim() == 2 else torch.zeros(1)
        assert torch.all((again.model.state_dict()[key] - tensor).abs() <= step / 2 + 1e-6), key
    sizes = {kind: (tmp_path / kind / "model.safetensors").stat().st_size for kind in ("float32", "int8")}
    assert sizes["int8"] < 0.4 * sizes["float32"]  # the short rows of the tiny model need many scales
    assert again.metadata["weights"] == "int8"


def test_a_loaded_package_gives_the_same_entities(tiny_model_dir: Path, tiny: Package, tmp_path: Path):
    repack(tiny, tmp_path / "again", name="another", int8=False)
    one, other = (
        Extractor.load(str(directory), device="cpu", precision="float32").extract([TEXT], LABELS, threshold=0.3)
        for directory in (tiny_model_dir, tmp_path / "again")
    )
    assert one == other != [[]]


def test_all_files_have_the_same_permissions(tiny: Package, tmp_path: Path):
    save(tmp_path / "new", tiny)
    assert len({path.stat().st_mode for path in (tmp_path / "new").iterdir()}) == 1


def test_every_architecture_is_loaded_without_random_weights(tiny: Package, tmp_path: Path):
    for head, lstm in (("paper", True), ("marker", False)):
        model = SpanModel(replace(tiny.config, span_head=head, lstm=lstm)).eval()  # type: ignore[arg-type]
        save(tmp_path / head, tiny, model=model)
        again = load_package(tmp_path / head).model
        for key, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key
        for (name, buffer), other in zip(model.named_buffers(), again.buffers(), strict=True):
            assert torch.equal(buffer, other), name


def test_loading_in_threads_leaves_new_models_random(tiny: Package):
    other = replace(tiny.config, encoder={**tiny.config.encoder, "model_type": "electra"})  # not built by this package
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(unfilled_model, [tiny.config, other] * 16))
    finally:
        sys.setswitchinterval(interval)
    fresh = [SpanModel(tiny.config).spans.out.weight for _ in range(2)]
    assert not torch.equal(*fresh)
    assert all(0 < weight.std() < 1 for weight in fresh)


@pytest.mark.parametrize("existing", ["file", "directory"])
def test_saving_overwrites_nothing(tiny: Package, tmp_path: Path, existing: str):
    target = tmp_path / "target"
    if existing == "directory":
        target.mkdir()
        (target / "mine.txt").write_text("precious")
    else:
        target.write_text("precious")
    message = refusal(lambda: save(target, tiny))
    assert str(target) in message
    assert (target / "mine.txt" if existing == "directory" else target).read_text() == "precious"
    assert os.listdir(tmp_path) == ["target"]


def test_saving_into_an_empty_directory_works_even_in_the_current_one(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "deep" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    save(Path("."), tiny)
    assert load_package(here).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_no_files(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    write = package.save_file

    def fail(tensors: dict[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        raise error

    monkeypatch.setattr(package, "save_file", fail)
    with pytest.raises((PackageError, KeyboardInterrupt)) as caught:
        save(tmp_path / "new", tiny)
    assert os.listdir(tmp_path) == []
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tiny: Package, tmp_path: Path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "new") in refusal(lambda: save(tmp_path / "file" / "new", tiny))


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_the_fingerprint_covers_only_what_determines_the_output(tiny: Package, tmp_path: Path):
    again = save(tmp_path / "1", tiny)
    other_words = save(tmp_path / "2", tiny, name="other", metadata={"metrics": {"f1": 1}, "license": "x"}, card="x")
    assert again == other_words == tiny.fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", again)
    assert repack(load_package(tmp_path / "2"), tmp_path / "3", name="x", int8=False) == again


def test_the_fingerprint_changes_with_weights_configuration_and_tokenizer(tiny: Package, tmp_path: Path):
    state = {key: tensor.clone() for key, tensor in tiny.model.state_dict().items()}
    last = next(key for key in reversed(state) if state[key].dim() == 1)
    state[last][-1] += 1e-3
    nudged = SpanModel(tiny.config)
    nudged.load_state_dict(state)
    wider = SpanModel(replace(tiny.config, max_words=47))
    wider.load_state_dict(tiny.model.state_dict())
    backend = Tokenizer.from_str(tiny.tokenizer.backend.to_str())
    backend.add_tokens(["zebra"])
    fingerprints = {
        tiny.fingerprint,
        save(tmp_path / "1", tiny, model=nudged),
        save(tmp_path / "2", tiny, model=wider),
        save(tmp_path / "3", tiny, tokenizer=backend),
        save(tmp_path / "4", tiny, int8=True),
    }
    assert len(fingerprints) == 5


def test_metadata_cannot_replace_the_facts_of_the_package(tiny: Package, tmp_path: Path):
    false = {"fingerprint": "0" * 64, "format": 9, "architecture": {}, "weights": "int3", "name": "false"}
    save(tmp_path / "new", tiny, metadata=false)
    again = load_package(tmp_path / "new")
    assert (again.name, again.fingerprint) == ("tiny", tiny.fingerprint)
    assert again.metadata == {"format": 1, "name": "tiny", "weights": "float32"}


def test_values_outside_the_fingerprint_may_be_edited(tiny: Package, copy: Path):
    edit_manifest(copy, name="renamed", metrics={"sets": []})
    (copy / "README.md").unlink()
    again = load_package(copy)
    assert (again.name, again.fingerprint) == ("renamed", tiny.fingerprint)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_one_altered_byte_is_noticed(copy: Path, file: str, position: float):
    content = bytearray((copy / file).read_bytes())
    content[int(position * len(content))] ^= 1
    (copy / file).write_bytes(content)
    message = refusal(load_package, copy)
    assert str(copy) in message and "altered" in message


def test_an_altered_architecture_is_noticed(copy: Path):
    architecture = json.loads((copy / "spanlake.json").read_text())["architecture"]
    edit_manifest(copy, architecture={**architecture, "max_width": 3})
    assert "altered" in refusal(load_package, copy)


@pytest.mark.parametrize("file", ["spanlake.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, file: str):
    (copy / file).unlink()
    assert file in refusal(load_package, copy)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[1, 2]", "format"),
        (b"null", "format"),
        (b'{"format": 2, "model": "from the future"}', "has package format 2; this version reads format 1"),
        (b'{"format": "1"}', "format '1'"),
        (b'{"format": 1}', "architecture"),
        (b'{"format": 1, "architecture": []}', "architecture"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(copy: Path, content: bytes, says: str):
    (copy / "spanlake.json").write_bytes(content)
    message = refusal(load_package, copy)
    assert says in message and str(copy) in message


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda tensors: tensors.pop("spans.out.bias"), "1 are missing, such as spans.out.bias"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), "1 do not belong, such as more"),
        (lambda tensors: tensors.update({"spans.out.bias": torch.zeros(31)}), "spans.out.bias has the shape [31]"),
        (lambda tensors: tensors.update({"spans.out.bias::scale": torch.ones(1)}), "such as spans.out.bias::scale"),
        (lambda tensors: tensors.clear(), "are missing"),
        (
            lambda tensors: tensors.update({"spans.out.weight": torch.ones(32, 128, dtype=torch.int8)}),
            "spans.out.weight has no scale for each row",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(copy: Path, harm: Callable[[dict[str, torch.Tensor]], Any], says: str):
    tensors = load_file(copy / "model.safetensors")
    harm(tensors)
    save_file(tensors, copy / "model.safetensors")
    reseal(copy)
    assert says in refusal(load_package, copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 100),
        ("model.safetensors", b"PK\x03\x04 not tensors"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, file: str, content: bytes):
    (copy / file).write_bytes(content)
    reseal(copy)
    assert str(copy / file) in refusal(load_package, copy)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda architecture: architecture.update(values)


def change_encoder(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda architecture: architecture["encoder"].update(values)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (change(rope=True), "'rope'"),
        (change(span_head="convolution"), "'convolution'"),
        (change(span_head=["paper"]), "['paper']"),
        (change(hidden_size=0), "hidden_size is 0"),
        (change(max_width="4"), "max_width is '4'"),
        (change(max_words=4), "max_words (4)"),
        (change(dropout=5), "dropout is 5; it must be a number from 0 to below 1"),
        (change(encoder="bert"), "encoder is 'bert'"),
        (change(entity_token=7), "entity_token is 7"),
        (change(separator_token=None), "separator_token is None"),
        (change(separator_token="<<NONE>>"), "'<<NONE>>'"),
        (change(entity_token_id=3), "expects 3"),
        (change(hidden_size=33), "projection.bias"),
        (change(max_words=None), "max_words is None"),
        (lambda architecture: architecture.pop("hidden_size"), "hidden_size"),
        (change_encoder(model_type="bart"), "decoder"),
        (change_encoder(model_type="nothing"), "'nothing'"),
        (change_encoder(model_type=None), "model_type"),
        (change_encoder(hidden_act="nothing"), "nothing"),
        (change_encoder(num_attention_heads=5), "heads"),
        (change_encoder(hidden_size="32"), "hidden_size"),
        (change_encoder(vocab_size=10), "shape"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(copy: Path, harm: Callable[[dict[str, Any]], Any], says: str):
    architecture = json.loads((copy / "spanlake.json").read_text())["architecture"]
    harm(architecture)
    edit_manifest(copy, architecture=architecture)
    reseal(copy)
    assert says in refusal(load_package, copy)


def test_storage_and_run_time_settings_of_an_encoder_are_ignored(copy: Path, tiny: Package):
    architecture = json.loads((copy / "spanlake.json").read_text())["architecture"]
    architecture["encoder"] |= {
        "dtype": "float16",
        "attn_implementation": "someone/their-kernel",  # would be fetched and run
        "return_dict": False,
        "auto_map": {"AutoModel": "theirs.Model"},
        "_name_or_path": "elsewhere",
    }
    edit_manifest(copy, architecture=architecture)
    reseal(copy)
    loaded = load_package(copy)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    one, other = (
        Extractor(each, torch.device("cpu"), torch.float32).extract([TEXT], LABELS, threshold=0.3)
        for each in (loaded, tiny)
    )
    assert one == other != [[]]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "no-such-model", "/no/such/directory", "a/b/c", "..", "x" * 5000, "nul\0"])
def test_an_unknown_name_is_refused(name: str):
    assert "model" in refusal(open_package, name)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./nothing"])
def test_a_hub_id_that_cannot_be_fetched_is_refused(name: str):
    message = refusal(open_package, name)
    assert repr(name) in message and "Hub" in message


def test_a_directory_that_holds_no_package_is_refused(tmp_path: Path):
    assert "spanlake.json" in refusal(open_package, str(tmp_path))


def test_a_path_object_names_a_directory(tiny_model_dir: Path, tiny: Package):
    assert open_package(tiny_model_dir).fingerprint == tiny.fingerprint  # type: ignore[arg-type]


# --- packages by URI --------------------------------------------------------------------------------------------------


@pytest.fixture
def in_memory(tiny_model_dir: Path) -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tiny_model_dir), "/models/tiny", recursive=True)
    yield filesystem
    filesystem.rm("/models", recursive=True)


def test_a_package_by_uri_is_fetched_once(in_memory: Any, tiny: Package):
    assert open_package("memory://models/tiny").fingerprint == tiny.fingerprint
    in_memory.rm("/models/tiny/model.safetensors")
    assert open_package("memory://models/tiny/").fingerprint == tiny.fingerprint


def test_a_changed_package_at_the_same_uri_is_fetched_again(in_memory: Any, tiny: Package, tmp_path: Path):
    open_package("memory://models/tiny")
    save(tmp_path / "new", tiny, int8=True)
    in_memory.put(str(tmp_path / "new") + "/", "/models/tiny/", recursive=True)
    assert open_package("memory://models/tiny").fingerprint != tiny.fingerprint


def test_a_damaged_transfer_is_refused_and_not_kept(in_memory: Any, tiny_model_dir: Path, tiny: Package, cache: Path):
    in_memory.pipe("/models/tiny/model.safetensors", b"half")
    message = refusal(open_package, "memory://models/tiny")
    assert "memory://models/tiny" in message and "altered" in message and str(cache) not in message
    assert not list(cache.rglob("*.safetensors"))
    in_memory.put(str(tiny_model_dir / "model.safetensors"), "/models/tiny/model.safetensors")
    assert open_package("memory://models/tiny").fingerprint == tiny.fingerprint


def test_a_file_uri_is_read(tiny_model_dir: Path, tiny: Package):
    assert open_package(tiny_model_dir.as_uri()).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("uri", ["memory://nowhere", "file:///no/such/place", "nonsense://x/y", "://", "memory://"])
def test_a_uri_that_cannot_be_read_is_named(uri: str):
    assert repr(uri) in refusal(open_package, uri)


def test_a_package_in_object_storage(tiny_model_dir: Path, tiny: Package, monkeypatch: pytest.MonkeyPatch):
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="models")
        for path in tiny_model_dir.iterdir():
            client.upload_file(str(path), "models", f"a/tiny/{path.name}")
        where = f"?endpoint_override={host}:{port}&scheme=http"
        assert open_package("s3://models/a/tiny" + where).fingerprint == tiny.fingerprint
        assert "s3://models/a/none" in refusal(open_package, "s3://models/a/none" + where)
    finally:
        server.stop()


# --- the splitter -----------------------------------------------------------------------------------------------------


def test_the_splitter_is_part_of_the_fingerprint_and_of_what_is_found(tiny: Package, tmp_path: Path):
    assert "splitter" not in tiny.config.to_dict()  # so that packages of before keep their fingerprints
    model = SpanModel(replace(tiny.config, splitter="unicode"))
    model.load_state_dict(tiny.model.state_dict())
    fingerprint = save(tmp_path / "unicode", tiny, model=model)
    assert fingerprint != tiny.fingerprint
    loaded = load_package(tmp_path / "unicode")
    assert loaded.config.splitter == loaded.tokenizer.splitter == "unicode"
    text = "田中さんはパリに行きました"
    words = {(word.start, word.end) for word in found_words(tmp_path / "unicode", text)}
    assert (text.index("パリ"), text.index("パリ") + 2) in words


def found_words(directory: Path, text: str) -> list[Entity]:
    with Extractor.load(str(directory), device="cpu", precision="float32") as extractor:
        return extractor.extract([text], ["person", "place"], threshold=0.0, nested=True, multi_label=True)[0]


def test_a_splitter_that_is_unknown_or_not_installed_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = json.loads((copy / "spanlake.json").read_text())
    for splitter, says in (("thai", "'thai' is unknown"), ("stanza", "run `pip install stanza langdetect`")):
        edit_manifest(copy, architecture={**manifest["architecture"], "splitter": splitter})
        reseal(copy)
        monkeypatch.setitem(sys.modules, "stanza", None)
        with pytest.raises(UserError, match=says):
            load_package(copy)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model_type": "extractor", "architecture": "boundary"},
            'is a GLiNER2 checkpoint with architecture "boundary"',
        ),
        ({"model_type": "bert"}, "is a checkpoint of type 'bert', which finds no entities by itself"),
        ({}, "is not a model package: it has no spanlake.json"),
        ([], "is not a model package"),
    ],
)
def test_a_checkpoint_of_another_family_is_named(tmp_path: Path, config: Any, says: str):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert re.search(says, refusal(open_package, str(tmp_path)))
