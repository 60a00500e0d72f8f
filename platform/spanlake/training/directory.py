"""Where a run is written: a directory on disk or in object storage.

RUN/recipe.json      the recipe as resolved; a run of another one is refused
RUN/metrics.jsonl    one record for each time something was measured
RUN/package/         the best package so far
RUN/tensorboard/     the same measurements for TensorBoard
RUN/ray/             checkpoints of a run on Ray
RUN/checkpoints/     checkpoints of any other
RUN/data/            data sets that the recipe names in another format, prepared
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.storage import open_uri, shown_uri
from spanlake.training.recipe import Recipe

# What may differ between a run and what goes on with it: none of these changes what is learned.
_FREE = ("parallel.workers", "parallel.gpus_per_worker", "parallel.cpus_per_worker", "logging", "checkpoint")

RAY_FOLDER = "ray"
OWN_FOLDER = "checkpoints"


@dataclass(frozen=True)
class RunDirectory:
    """It can be pickled."""

    uri: str
    filesystem: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read(self, name: str) -> str | None:
        if self.filesystem.get_file_info(self.child(name)).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(self.child(name)) as stream:
            return stream.read().decode("utf-8")

    def exists(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(self.child(name)).type != fs.FileType.NotFound)

    def write(self, name: str, text: str) -> None:
        """Others read what stood there before, or all of the new."""
        if self.is_local:
            draft = Path(self.child(f"{name}.new"))
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.child(name))
            return
        with self.filesystem.open_output_stream(self.child(name)) as stream:
            stream.write(text.encode("utf-8"))

    def publish(self, directory: Path, name: str) -> None:
        """Put a local directory in place of the one that stands under a name."""
        if self.is_local:
            old, target = Path(self.child(f"{name}.old")), Path(self.child(name))
            draft = Path(self.child(f"{name}.new"))
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(directory, draft)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            draft.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            return
        if self.filesystem.get_file_info(self.child(name)).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.child(name))
        self.upload(directory, name)

    def upload(self, directory: Path, name: str) -> None:
        fs.copy_files(
            str(directory),
            self.child(name),
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )


def open_run(uri: str) -> RunDirectory:
    """Raises: UserError for a URI that cannot be reached."""
    if "://" not in uri:
        path = str(Path(uri).expanduser().absolute())
        return RunDirectory(path, fs.LocalFileSystem(), path)
    try:
        filesystem, path = open_uri(uri)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The run directory {shown_uri(uri)} cannot be reached ({one_line(error)}).") from error
    return RunDirectory(uri, filesystem, path.rstrip("/"))


def claim(run: RunDirectory, recipe: Recipe) -> None:
    """Make the directory the recipe's.

    Raises: UserError where it holds another recipe's run, naming the first difference, or cannot be written.
    """
    asked = recipe.to_dict()
    try:
        written = run.read("recipe.json")
        if written is None:
            run.filesystem.create_dir(run.path, recursive=True)
            run.write("recipe.json", json.dumps(asked, indent=1))
            return
        recorded = json.loads(written)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"The run directory {shown_uri(run.uri)} cannot be used ({one_line(error)}).") from error
    old, new = _flat(recorded), _flat(asked)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            raise UserError(
                f"{shown_uri(run.uri)} holds a run of another recipe ({key} is {old.get(key)!r} there and "
                f"{new.get(key)!r} here); give another --directory."
            )


def refuse_checkpoints(run: RunDirectory, folder: str) -> None:
    """Raises: UserError where the run has been launched the other way, whose checkpoints are in `folder`."""
    if run.exists(folder):
        way = "on Ray" if folder == RAY_FOLDER else "without Ray"
        raise UserError(
            f"{shown_uri(run.uri)} holds a run {way}, with its checkpoints in {folder}/; go on with it that way, "
            "with the parallel.workers it had, or give another --directory."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
