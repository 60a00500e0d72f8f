"""The vectors of labels of a bi-encoder: made once, and kept in memory and on disk.

A file of vectors lies in the user's cache under the model's fingerprint. `spanlake labels` writes it, and every process
that loads the model reads it:

    $XDG_CACHE_HOME/spanlake/labels/FINGERPRINT.safetensors
        vectors    float32 [N, D]
        labels     uint8, a JSON list of N labels in UTF-8
        model      uint8, the fingerprint in ASCII

Shapes: N labels, D width of a vector.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from spanlake.errors import PackageError, one_line, shown
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.label_tokens import BiTokenizer
from spanlake.modeling.tokens import Prompt
from spanlake.package import cache_home, open_package

_AT_ONCE = 4096  # padded sub-words of labels in one pass
_MOST_KEPT = 100_000  # labels in memory beside those of the file
_MOST_LISTS = 16  # lists of labels whose vectors are kept as one matrix


class LabelVectors:
    """The vectors of one model's labels. Threads may share it."""

    def __init__(self, tokenizer: BiTokenizer, fingerprint: str, width: int, device: torch.device) -> None:
        """Begins with the vectors on disk, which have the `width` D. A model without a fingerprint has none there.

        Raises `PackageError` as `read_vectors` does.
        """
        stored = read_vectors(fingerprint, width) if fingerprint else {}
        self._tokenizer, self._device = tokenizer, device
        self._stored = {tokenizer.label(label): vector for label, vector in stored.items()}
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._lists: dict[Prompt, torch.Tensor] = {}
        self._lock = Lock()

    def of(self, model: BiEncoderModel, prompt: Prompt) -> torch.Tensor:
        """Returns the vectors of the prompt's labels, float32 [N, D], on the device."""
        with self._lock:
            if prompt not in self._lists:
                if len(self._lists) == _MOST_LISTS:
                    del self._lists[next(iter(self._lists))]
                self._lists[prompt] = self._matrix(model, prompt.labels)
            return self._lists[prompt]

    def _matrix(self, model: BiEncoderModel, labels: Sequence[tuple[int, ...]]) -> torch.Tensor:
        asked = [label for label in dict.fromkeys(labels) if label not in self._stored]
        new = [label for label in asked if label not in self._kept]
        if len(self._kept) + len(new) > _MOST_KEPT:
            self._kept, new = {}, asked
        if new:
            self._kept |= dict(zip(new, encode_labels(model, self._tokenizer, new, self._device), strict=True))
        stored, kept = self._stored, self._kept
        return torch.stack([stored[label] if label in stored else kept[label] for label in labels]).to(self._device)


@torch.inference_mode()
def encode_labels(
    model: BiEncoderModel, tokenizer: BiTokenizer, labels: Sequence[tuple[int, ...]], device: torch.device
) -> torch.Tensor:
    """Returns the vectors of labels that `tokenizer` has cut, float32 [N, D] on the CPU."""
    order = sorted(range(len(labels)), key=lambda place: len(labels[place]))
    vectors = torch.empty(len(labels), model.config.hidden_size)
    at = 0
    while at < len(order):
        longest = len(labels[order[at]])
        stop = at + 1
        while stop < len(order) and (stop + 1 - at) * max(longest, len(labels[order[stop]])) <= _AT_ONCE:
            longest = len(labels[order[stop]])
            stop += 1
        places = order[at:stop]
        ids, mask = tokenizer.label_batch([labels[place] for place in places])
        vectors[places] = model.type_vectors(ids.to(device), mask.to(device)).float().cpu()
        at = stop
    return vectors


def store_labels(model: str, labels: Sequence[str], device: torch.device) -> tuple[Path, int, int]:
    """Adds the vectors of labels to those of a model on disk. Returns the file, and how many labels are new and in all.

    Raises `PackageError` for a model that is not a bi-encoder, `UserError` for a label that it cannot read, and both as
    `open_package`, `read_vectors` and `write_vectors` do.
    """
    package = open_package(model)
    if not isinstance(package.tokenizer, BiTokenizer):
        raise PackageError(
            f"{package.name} reads labels together with each text, so they have no vectors of their own; choose a "
            "bi-encoder."
        )
    known = read_vectors(package.fingerprint, package.config.hidden_size)
    new = [label for label in dict.fromkeys(labels) if label not in known]
    cut = [package.tokenizer.label(label) for label in new]
    bi_encoder = cast(BiEncoderModel, package.model)
    bi_encoder.move(device, torch.float32)
    known |= dict(zip(new, encode_labels(bi_encoder, package.tokenizer, cut, device), strict=True))
    return write_vectors(package.fingerprint, known), len(new), len(known)


def vectors_path(fingerprint: str) -> Path:
    """Returns where the vectors of a model's labels are kept."""
    return cache_home() / "labels" / f"{fingerprint}.safetensors"


def read_vectors(fingerprint: str, width: int) -> dict[str, torch.Tensor]:
    """Returns the vectors of a model's labels that are on disk, each float32 [D]; none where there is no file.

    width: D.

    Raises `PackageError` for a file that cannot be read, or that is of another model.
    """
    path = vectors_path(fingerprint)
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
        model = bytes(tensors["model"].tolist()).decode("ascii")
        labels = json.loads(bytes(tensors["labels"].tolist()))
        vectors = tensors["vectors"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("its labels are not a list of strings")
        if vectors.dtype != torch.float32 or vectors.shape != (len(labels), width):
            raise ValueError(f"it has no float32 vector of {width} numbers for each of its {len(labels)} labels")
        found = dict(zip(labels, vectors, strict=True))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise PackageError(
            f"The label cache {path} cannot be read ({one_line(error)}); delete it, then run `spanlake labels` again."
        ) from error
    if model != fingerprint:
        raise PackageError(
            f"The label cache {path} is of another model, with the fingerprint {shown(model[:12])}; delete it, then "
            f"run `spanlake labels` for the model with the fingerprint {fingerprint[:12]}."
        )
    return found


def write_vectors(fingerprint: str, vectors: Mapping[str, torch.Tensor]) -> Path:
    """Replaces the vectors of a model's labels on disk, and returns their file.

    Raises `PackageError` where the file cannot be written.
    """
    path = vectors_path(fingerprint)
    tensors = {
        "vectors": torch.stack(list(vectors.values())),
        "labels": _bytes(json.dumps(list(vectors), ensure_ascii=False).encode()),
        "model": _bytes(fingerprint.encode("ascii")),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            # `save_file` would make a file that only this user can read; other users of a cluster share it.
            (Path(temporary) / "vectors").write_bytes(save(tensors))
            os.replace(Path(temporary) / "vectors", path)
    except (OSError, SafetensorError) as error:
        raise PackageError(
            f"The label cache {path} cannot be written ({one_line(error)}); name a directory for it in XDG_CACHE_HOME."
        ) from error
    return path


def _bytes(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
