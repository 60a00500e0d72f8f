"""The model package: one directory that holds everything of a model, and loads offline. Any change to it is noticed.

    spanlake.json        format version, architecture, labels seen, lineage, metrics, licence, fingerprint
    model.safetensors    the weights, float32 or int8 with a float32 scale per output channel
    tokenizer.json       the sub-words
    labels_tokenizer.json    the sub-words of labels; only of a bi-encoder
    README.md            the model card

A package may also be an adapter, which changes the model of another package while it is loaded. It has
adapter.safetensors in place of the weights and the tokenizer, and its spanlake.json names the other package, its base.

Loading a package runs no code from it and unpickles nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from spanlake.calibration import Calibration
from spanlake.errors import PackageError, one_line, shown
from spanlake.modeling.config import ModelConfig, window_of
from spanlake.modeling.families import unfilled_model
from spanlake.modeling.gliner2_format import is_gliner2, read_gliner2
from spanlake.modeling.gliner2_tokens import Gliner2Tokenizer
from spanlake.modeling.gliner_format import is_gliner_directory, read_gliner, read_labels_tokenizer
from spanlake.modeling.label_tokens import BiTokenizer
from spanlake.modeling.lora import Adapter, changed
from spanlake.modeling.model import SpanModel
from spanlake.modeling.tokens import ModelTokenizer, PromptTokenizer
from spanlake.modeling.weights import load_weights
from spanlake.storage import locate

FORMAT = 1
MANIFEST = "spanlake.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
ADAPTER_WEIGHTS = "adapter.safetensors"
LABELS_TOKENIZER = "labels_tokenizer.json"
CARD = "README.md"
ENCODER_CONFIG = "config.json"  # of other libraries
EMBEDDED = Path(__file__).parent / "models"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "pytorch_model.bin", "*.model", "*.txt", CARD]
_SCALE = "::scale"  # the suffix of the tensor that holds the scales of an int8 tensor


@dataclass
class Package:
    name: str
    model: SpanModel  # float32, on the CPU, in evaluation mode
    tokenizer: ModelTokenizer
    metadata: dict[str, Any]  # the other values of spanlake.json: not architecture or fingerprint
    fingerprint: str  # SHA-256, hexadecimal, over everything that determines the output

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def base_fingerprint(self) -> str:
        """Returns the fingerprint of the model below an adapter; of another package, its own."""
        adapter = self.metadata.get("adapter")
        return self.fingerprint if adapter is None else str(adapter["base_fingerprint"])

    @cached_property
    def calibration(self) -> Calibration | None:
        found = self.metadata.get("calibration")
        return None if found is None else Calibration.from_dict(found)


def prompt_tokenizer(
    tokenizer: Tokenizer, config: ModelConfig, labels_tokenizer: Tokenizer | None = None
) -> ModelTokenizer:
    """Returns what cuts words and labels for a model. A bi-encoder needs a `labels_tokenizer`.

    Raises `PackageError` and `UserError` as `PromptTokenizer` and `BiTokenizer` do.
    """
    if config.labels_encoder is None:
        family = PromptTokenizer if config.counting is None else Gliner2Tokenizer
        return family(
            tokenizer,
            entity_token=config.entity_token,
            separator_token=config.separator_token,
            entity_token_id=config.entity_token_id,
            type_vector_at_entity_token=config.type_vector_at_entity_token,
            splitter=config.splitter,
        )
    assert labels_tokenizer is not None
    return BiTokenizer(
        tokenizer,
        labels_tokenizer,
        most=window_of(config.labels_encoder),
        pad_id=config.labels_encoder.get("pad_token_id") or 0,
        splitter=config.splitter,
    )


def save_package(
    directory: Path,
    model: SpanModel,
    tokenizer: Tokenizer,
    *,
    name: str,
    metadata: Mapping[str, Any],
    card: str,
    int8: bool = False,
    labels_tokenizer: Tokenizer | None = None,
) -> str:
    """Writes a package into `directory`, either whole or not at all, and returns its fingerprint.

    A bi-encoder has a `labels_tokenizer`.

    Raises `PackageError` where `directory` is not empty or cannot be written.
    """
    with new_directory(directory, "package") as draft:
        if labels_tokenizer is not None:
            (draft / LABELS_TOKENIZER).write_text(labels_tokenizer.to_str(pretty=True), encoding="utf-8")
        return _write(draft, model, tokenizer, name, metadata, card, int8)


@contextlib.contextmanager
def new_directory(directory: Path, what: str) -> Iterator[Path]:
    """Yields a draft that becomes `directory` when the block ends without an error. `what` names it in messages.

    The draft's parent is a temporary directory. Raises `PackageError` where `directory` is not empty or cannot be
    written.
    """
    directory = Path(directory).absolute()
    try:
        refuse_existing(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{what}-") as temporary:
            draft = Path(temporary) / what
            draft.mkdir()
            yield draft
            if directory.exists():
                directory.rmdir()
            os.rename(draft, directory)
    except (OSError, SafetensorError) as error:
        raise PackageError(
            f"The {what} {directory} cannot be written ({one_line(error)}); name another directory."
        ) from error


def refuse_existing(directory: Path) -> None:
    """Raises `PackageError` unless `directory` is absent or empty, so that nothing is overwritten."""
    if directory.exists() and not directory.is_dir():
        raise PackageError(f"{directory} is a file; name a new directory.")
    if directory.exists() and any(directory.iterdir()):
        raise PackageError(f"{directory} is not empty; name a new directory.")


def _write(
    draft: Path, model: SpanModel, tokenizer: Tokenizer, name: str, metadata: Mapping[str, Any], card: str, int8: bool
) -> str:
    weights = {key: tensor.detach().cpu().float().contiguous() for key, tensor in model.state_dict().items()}
    (draft / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    save_file(_narrowed(weights) if int8 else weights, draft / WEIGHTS)
    shutil.copymode(draft / TOKENIZER, draft / WEIGHTS)  # safetensors writes a file that only this user can read
    (draft / CARD).write_text(card, encoding="utf-8")
    architecture = model.config.to_dict()
    fingerprint = _fingerprint(draft, {**metadata, "architecture": architecture})
    head = {"format": FORMAT, "name": name, "fingerprint": fingerprint, "weights": "int8" if int8 else "float32"}
    _write_manifest(draft, head, {**metadata, "architecture": architecture})
    return fingerprint


def _write_manifest(draft: Path, head: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    # `head` comes twice: first for the order of the keys, then so that metadata cannot replace its values.
    manifest = {**head, **metadata, **head}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_adapter(directory: Path, adapter: Adapter, changes: Mapping[str, torch.Tensor], package: Package) -> str:
    """Writes an adapter into `directory`, either whole or not at all, and returns its fingerprint.

    `changes` are named as `changed` wants them. The name and the metadata are those of `package`. Raises `PackageError`
    where `directory` is not empty or cannot be written.
    """
    metadata = {**package.metadata, "adapter": asdict(adapter)}
    with new_directory(directory, "package") as draft:
        card = model_card(package.name, package.config, metadata)
        (draft / CARD).write_text(card, encoding="utf-8")
        weights = {name: tensor.detach().cpu().float().contiguous() for name, tensor in changes.items()}
        save_file(weights, draft / ADAPTER_WEIGHTS)
        shutil.copymode(draft / CARD, draft / ADAPTER_WEIGHTS)  # safetensors writes a file that only this user can read
        fingerprint = _fingerprint(draft, metadata)
        _write_manifest(draft, {"format": FORMAT, "name": package.name, "fingerprint": fingerprint}, metadata)
        return fingerprint


def load_package(directory: Path) -> Package:
    """Reads a package and compares it with its fingerprint. An adapter is loaded with its base.

    Raises `PackageError` where a file is missing, damaged or altered, or a tensor is missing, extra or misshapen.
    """
    manifest = verify_package(directory)
    if "adapter" in manifest:
        return _load_adapter(directory, manifest)
    config = ModelConfig.from_dict(manifest.pop("architecture"))
    model = unfilled_model(config)
    weights = _widened(_read_tensors(directory / WEIGHTS), str(directory))
    load_weights(model, weights, {key: key for key in model.state_dict()}, str(directory))
    labels_tokenizer = read_tokenizer(directory / LABELS_TOKENIZER) if config.labels_encoder else None
    tokenizer = prompt_tokenizer(read_tokenizer(directory / TOKENIZER), config, labels_tokenizer)
    fingerprint = manifest.pop("fingerprint")
    return Package(str(manifest.get("name", directory.name)), model, tokenizer, manifest, fingerprint)


def _load_adapter(directory: Path, manifest: dict[str, Any]) -> Package:
    adapter = Adapter.from_dict(manifest["adapter"])
    base = _open_base(directory, adapter)
    if base.fingerprint != adapter.base_fingerprint:
        raise PackageError(
            f"The adapter {directory} changes a model with the fingerprint {adapter.base_fingerprint[:12]}…, but "
            f"{adapter.base} has {base.fingerprint[:12]}…; put the right model there, or name its place as "
            f"adapter.base in {MANIFEST}."
        )
    changes = _read_tensors(directory / ADAPTER_WEIGHTS)
    weights = changed(base.model.state_dict(), changes, adapter.scale, str(directory))
    base.model.load_state_dict(weights, strict=False, assign=True)
    fingerprint = manifest.pop("fingerprint")
    return Package(str(manifest.get("name", directory.name)), base.model, base.tokenizer, manifest, fingerprint)


def _open_base(directory: Path, adapter: Adapter) -> Package:
    """A base that begins with `.` is a path from the adapter's own directory."""
    base = str(directory / adapter.base) if adapter.base.startswith(".") else adapter.base
    try:
        if "adapter" in peek_metadata(str(find_model(base))):
            raise PackageError("it is an adapter too")
        return open_package(base)
    except PackageError as error:
        raise PackageError(
            f"The adapter {directory} changes the model {shown(adapter.base)}, which cannot be used "
            f"({str(error).rstrip('.')}); name the place of the model with the fingerprint "
            f"{adapter.base_fingerprint[:12]}… as adapter.base in {MANIFEST}."
        ) from error


def open_package(model: str) -> Package:
    """Loads the model that `model` names: a Spanlake package or a published GLiNER checkpoint.

    Raises `PackageError` as `find_model` and `load_package` do.
    """
    directory = find_model(model)
    read = _reader(directory)
    if read is None:
        return load_package(directory)
    span_model, tokenizer = read(directory)
    labels_tokenizer = read_labels_tokenizer(directory) if span_model.config.labels_encoder else None
    return Package(
        directory.name,
        span_model,
        prompt_tokenizer(tokenizer, span_model.config, labels_tokenizer),
        {"license": "as published"},
        fingerprint_model(span_model, tokenizer, labels_tokenizer),
    )


def _reader(directory: Path) -> Callable[[Path], tuple[SpanModel, Tokenizer]] | None:
    """Returns what reads the published checkpoint in `directory`, or None where there is none.

    Raises `PackageError` for a checkpoint of the transformers library, which has a config.json too.
    """
    if is_gliner_directory(directory):
        return read_gliner
    if (directory / MANIFEST).is_file():
        return None
    try:
        values = json.loads((directory / ENCODER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if is_gliner2(values):
        return read_gliner2
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind is not None:
        raise PackageError(
            f"{directory} is a checkpoint of type {shown(kind)}, which finds no entities by itself; train a model on "
            "it with model.encoder in a recipe, or choose a package or a GLiNER checkpoint."
        )
    return None


def describe_model(model: str) -> dict[str, Any]:
    """Loads a model and returns its name, fingerprint, number of parameters, metadata and architecture."""
    package = open_package(model)
    return {
        "name": package.name,
        "fingerprint": package.fingerprint,
        "parameters": sum(parameter.numel() for parameter in package.model.parameters()),
        **{key: value for key, value in package.metadata.items() if key != "name"},
        "architecture": package.config.to_dict(),
    }


def peek_metadata(model: str) -> dict[str, Any]:
    """Returns the metadata of a package on this machine, without a check of its files; {} where there is none."""
    directory = EMBEDDED / model if _is_embedded(model) else Path(model)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def repack(package: Package, directory: Path, *, name: str, int8: bool, **metadata: Any) -> str:
    """Writes a loaded package again, under `name` and in int8 if asked, and returns the new fingerprint.

    `metadata` is added to the package's own.
    """
    of_files = ("name", "format", "weights", "adapter")
    known = {key: value for key, value in package.metadata.items() if key not in of_files}
    known |= metadata
    card = model_card(name, package.config, known)
    return save_package(
        directory,
        package.model,
        package.tokenizer.backend,
        name=name,
        metadata=known,
        card=card,
        int8=int8,
        labels_tokenizer=package.tokenizer.labels_backend,
    )


def find_model(model: str | os.PathLike[str]) -> Path:
    """Returns the directory of a model: `mini`, a directory, a URI, or a Hub id.

    Raises `PackageError` where there is no such model.
    """
    model = os.fspath(model)
    if _is_embedded(model):
        return EMBEDDED / model
    if os.path.isdir(model):
        return Path(model)
    if "://" in model:
        return _download(model)
    if _HUB_ID.fullmatch(model):
        from huggingface_hub import snapshot_download  # takes as long to import as a small model takes to load

        try:
            return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
        except Exception as error:  # the client, its transport and the system raise errors of many kinds
            raise PackageError(
                f"The model {shown(model)} is not a directory here and cannot be fetched from the Hub "
                f"({type(error).__name__}); check the name and the network, or give the directory of a copy."
            ) from error
    raise PackageError(
        f"The model {shown(model)} is unknown; give mini, a directory or URI of a package, a published GLiNER "
        "directory, or a Hub id such as urchade/gliner_medium-v2.1."
    )


def absolute_name(model: str | os.PathLike[str]) -> str:
    """Returns a name of the model that means the same in any working directory of this machine."""
    model = os.fspath(model)
    return os.path.abspath(model) if os.path.isdir(model) and not _is_embedded(model) else model


def _is_embedded(model: str) -> bool:
    return "/" not in model and os.path.isfile(EMBEDDED / model / MANIFEST)


def _download(uri: str) -> Path:
    """Returns the directory in the user's cache that holds a copy of the package at `uri`.

    The package is fetched once: spanlake.json, which is read each time, holds a hash of the other files.
    """
    try:
        place = locate(uri)
        with place.filesystem.open_input_stream(place.child(MANIFEST)) as stream:
            manifest = stream.read()
        home = cache_home()
        directory = home / hashlib.sha256(manifest).hexdigest()
        if directory.is_dir():
            return directory
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as temporary:
            draft = Path(temporary) / "package"
            draft.mkdir()
            (draft / MANIFEST).write_bytes(manifest)
            for file in _files(_read_manifest(draft, uri)):
                with place.filesystem.open_input_stream(place.child(file)) as stream, open(draft / file, "wb") as copy:
                    shutil.copyfileobj(stream, copy, 1 << 20)
            verify_package(draft, uri)
            with contextlib.suppress(OSError):  # another process may have moved the same content there first
                os.rename(draft, directory)
    except PackageError:
        raise
    except Exception as error:  # each filesystem has its own errors
        raise PackageError(
            f"The model {shown(uri)} cannot be read ({one_line(error)}); check the address and its permissions."
        ) from error
    return directory


def cache_home() -> Path:
    """Returns the directory of what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "spanlake")


def verify_package(directory: Path, source: str | None = None) -> dict[str, Any]:
    """Compares the files of a package with its fingerprint, and returns the contents of spanlake.json.

    Messages call the package `source`, or its directory where `source` is None. Raises `PackageError` where a file is
    missing, damaged or altered.
    """
    source = source or str(directory)
    manifest = _read_manifest(directory, source)
    for file in _files(manifest):
        if not (directory / file).is_file():
            raise PackageError(f"{source} is not a model package: it has no {file}.")
    try:
        actual = _fingerprint(directory, manifest)
    except ValueError as error:
        raise PackageError(f"The {MANIFEST} of {source} cannot be used: {error}; fetch the package again.") from error
    if manifest.get("fingerprint") != actual:
        raise PackageError(
            f"{source} has been altered: its fingerprint is {actual[:12]}…, but {MANIFEST} says "
            f"{str(manifest.get('fingerprint'))[:12]}…; fetch the package again."
        )
    return manifest


def _files(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the files that a package has beside spanlake.json and that determine its output."""
    if "adapter" in manifest:
        return (ADAPTER_WEIGHTS,)
    apart = manifest["architecture"].get("labels_encoder") is not None
    return (WEIGHTS, TOKENIZER, LABELS_TOKENIZER) if apart else (WEIGHTS, TOKENIZER)


def _read_manifest(directory: Path, source: str) -> dict[str, Any]:
    """Returns the contents of spanlake.json.

    Raises `PackageError`, which names `source`, where they are not those of a package.
    """
    if not (directory / MANIFEST).is_file():
        raise PackageError(f"{source} is not a model package: it has no {MANIFEST}.")
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(
            f"The {MANIFEST} of {source} cannot be read as JSON ({error}); fetch the package again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise PackageError(f"{source} has package format {shown(found)}; this version reads format {FORMAT}.")
    if "adapter" not in manifest and not isinstance(manifest.get("architecture"), dict):
        raise PackageError(f"The {MANIFEST} of {source} describes no architecture; fetch the package again.")
    return manifest


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json. Raises `PackageError` for a file that is not a tokenizer."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise PackageError(
            f"{path} cannot be read as a tokenizer ({one_line(error)}); fetch the package again."
        ) from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PackageError(
            f"{path} cannot be read as safetensors ({one_line(error)}); fetch the package again."
        ) from error


def fingerprint_model(model: SpanModel, *tokenizers: Tokenizer | None) -> str:
    """Returns the fingerprint of a model outside a package: over its architecture, tensors and tokenizers."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    for tokenizer in filter(None, tokenizers):
        digest.update(tokenizer.to_str().encode())
    return digest.hexdigest()


def _fingerprint(directory: Path, manifest: Mapping[str, Any]) -> str:
    """Returns the hash over what determines the output. The base of an adapter counts, wherever it is."""
    what = manifest.get("architecture")
    if "adapter" in manifest:
        adapter = Adapter.from_dict(manifest["adapter"])
        what = {"base": adapter.base_fingerprint, "scale": adapter.scale}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    calibration = manifest.get("calibration")
    if calibration is not None:
        digest.update(json.dumps(Calibration.from_dict(calibration).to_dict(), sort_keys=True).encode())
    for file in _files(manifest):
        with open(directory / file, "rb") as stream:
            digest.update(_sha256(stream))
    return digest.hexdigest()


def _narrowed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the matrices as int8 with one scale per row, symmetric about zero; vectors stay as they are."""
    narrowed = {}
    for key, tensor in weights.items():
        if tensor.dim() != 2:
            narrowed[key] = tensor
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        narrowed[key] = (tensor / scale).round().to(torch.int8)
        narrowed[key + _SCALE] = scale
    return narrowed


def _widened(weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    widened = dict(weights)
    for key, tensor in weights.items():
        if tensor.dtype == torch.int8:
            scale = widened.pop(key + _SCALE, None)
            if scale is None or scale.shape != (len(tensor), 1):
                raise PackageError(
                    f"The weights of {source} are damaged: {key} has no scale for each row; fetch the package again."
                )
            # NumPy converts on this thread alone. Threads of torch that wait for each other would take several times as
            # much processor time on a busy machine.
            widened[key] = torch.from_numpy(tensor.numpy() * scale.numpy())
    return widened


def _sha256(stream: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.digest()


def model_card(name: str, config: ModelConfig, metadata: Mapping[str, Any]) -> str:
    """Returns the content of a package's README.md."""
    family = "model" if config.labels_encoder is None else "bi-encoder"
    kind = f"{'token-level' if config.token_level else 'span'} {family}"
    adapter = metadata.get("adapter")
    what = (
        f"A LoRA adapter of rank {adapter['rank']} for the {kind} {adapter['base']}, which has the fingerprint "
        f"{adapter['base_fingerprint']}. It loads where that model is."
        if adapter
        else f"A {kind} for zero-shot named-entity recognition (Zaratiana et al., 2023), as a Spanlake package."
    )
    lines = [
        f"# {name}",
        "",
        what,
        "",
        f"- Encoder: {config.encoder['model_type']}; span head: {config.span_head}, up to {config.widest} words",
        f"- Licence: {metadata.get('license', 'unstated')}",
    ]
    lines += [f"- {line}" for line in metadata.get("card", ())]
    with contextlib.suppress(KeyError, TypeError):  # there are no metrics, or another program wrote them
        lines += _table(metadata["metrics"])
    return "\n".join(lines) + "\n"


def _table(metrics: Mapping[str, Any]) -> list[str]:
    lines = ["", "| set | F1 | precision | recall |", "|---|---|---|---|"]
    lines += [f"| {row['name']} | {row['f1']} | {row['precision']} | {row['recall']} |" for row in metrics["sets"]]
    return [*lines, "", f"Exact match, zero-shot, threshold {metrics['threshold']}, {metrics['split']} files."]
