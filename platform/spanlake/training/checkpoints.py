"""The progress that a checkpoint records, and how another number of processes loads a checkpoint."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from spanlake.data.stream import Position
from spanlake.training.engine import make_universal, needs_deepspeed
from spanlake.training.recipe import Recipe
from spanlake.training.worker import Worker


@dataclass
class Progress:
    """How far a run has come. Random draws follow from the seed and the step, so they need no state."""

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = -1.0  # dev F1
    waited: int = 0  # evaluations since the best one
    texts: int = 0
    tokens: int = 0
    size: int = 1  # processes
    base: str = ""  # the fingerprint of the model whose frozen weights the checkpoint leaves out

    def write(self, directory: Path) -> None:
        (directory / "progress.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Progress:
        values = json.loads((directory / "progress.json").read_text(encoding="utf-8"))
        return cls(**values | {"position": Position(**values["position"])})


@contextmanager
def loadable(found: Path, written_by: int, recipe: Recipe, worker: Worker) -> Iterator[Path]:
    """Yields a directory that these processes can load: the checkpoint, or a converted copy, made once on each machine.

    `written_by`: the number of processes that wrote it. Raises ShortfallError if it cannot be converted.
    """
    sharded = recipe.parallel.zero_stage > 0 and needs_deepspeed(recipe, worker.size)
    if not sharded or written_by == worker.size:
        yield found
        return
    with ExitStack() as temporary:
        converted = None
        if worker.local_rank == 0:
            converted = temporary.enter_context(TemporaryDirectory(prefix="spanlake-universal-"))
            make_universal(found, Path(converted))
        # Several nodes of a cluster may share a machine. They see the same files, so any copy will do.
        machine = socket.gethostname()
        copies = worker.gather((machine, converted))
        yield Path(next(path for where, path in copies if where == machine and path))
        worker.wait()
