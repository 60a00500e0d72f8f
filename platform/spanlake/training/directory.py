"""Where a run is written: a directory on disk or in object storage.

RUN/recipe.json      the recipe with all its values; a run of another recipe is refused
RUN/metrics.jsonl    one record for each measurement
RUN/package/         the best package so far
RUN/tensorboard/     the same measurements for TensorBoard
RUN/ray/             checkpoints of a run on Ray
RUN/checkpoints/     checkpoints of a run without Ray
RUN/data/            prepared data, of data sets in other formats
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import fs

from spanlake.errors import UserError, one_line
from spanlake.storage import Place
from spanlake.training.recipe import Recipe

# What may change when a run goes on, because it does not change what the model learns.
_FREE = ("parallel.workers", "parallel.gpus_per_worker", "parallel.cpus_per_worker", "logging", "checkpoint")

RAY_FOLDER = "ray"
OWN_FOLDER = "checkpoints"


def claim(run: Place, recipe: Recipe) -> None:
    """Claims the directory for a run of the recipe.

    Raises: UserError if it holds a run of another recipe, with the first difference, or if it cannot be written.
    """
    asked = recipe.to_dict()
    try:
        written = run.read("recipe.json")
        if written is None:
            run.filesystem.create_dir(run.path, recursive=True)
            run.write("recipe.json", json.dumps(asked, indent=1).encode())
            return
        recorded = json.loads(written)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"The run directory {run.uri} cannot be used ({one_line(error)}).") from error
    old, new = _flat(recorded), _flat(asked)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            raise UserError(
                f"{run.uri} holds a run of another recipe ({key} is {old.get(key)!r} there and "
                f"{new.get(key)!r} here); give another --directory."
            )


def refuse_checkpoints(run: Place, folder: str) -> None:
    """Raises: UserError if the run was launched the other way, which keeps its checkpoints in `folder`."""
    if run.kind(folder) != fs.FileType.NotFound:
        way = "on Ray" if folder == RAY_FOLDER else "without Ray"
        raise UserError(
            f"{run.uri} holds a run {way}, with its checkpoints in {folder}/; go on with it that way, "
            "with the parallel.workers it had, or give another --directory."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
