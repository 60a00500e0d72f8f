"""Checkpoints of a run that Ray does not launch: `RUN/checkpoints/STEP/`, whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from spanlake.data.stream import Position
from spanlake.storage import Place
from spanlake.training.directory import OWN_FOLDER

_WHOLE = "whole"  # a file that comes last


@dataclass
class Progress:
    """How far a run has come; what randomness follows from the seed and the step."""

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = -1.0  # dev F1
    waited: int = 0  # evaluations since
    texts: int = 0
    tokens: int = 0
    size: int = 1  # processes

    def write(self, directory: Path) -> None:
        (directory / "progress.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Progress:
        values = json.loads((directory / "progress.json").read_text(encoding="utf-8"))
        return cls(**values | {"position": Position(**values["position"])})


class Checkpoints(Protocol):
    """Used by all processes of a run together."""

    def latest(self) -> Any:
        """A context that gives the directory of the last checkpoint, or None."""

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, Any]) -> None:
        """`write` puts this process's part into a directory."""


class OwnCheckpoints:
    """In the run's directory. `barrier` waits for the other processes."""

    def __init__(self, run: Place, keep: int, rank: int, barrier: Callable[[], None]) -> None:
        self._run, self._keep, self._rank, self._barrier = run, keep, rank, barrier

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        steps = self._steps()
        if not steps:
            yield None
            return
        place = f"{OWN_FOLDER}/{steps[-1]:08}"
        if self._run.is_local:
            yield Path(self._run.child(place))
            return
        with TemporaryDirectory() as local:
            self._run.download(place, Path(local))
            yield Path(local)

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, Any]) -> None:
        place = f"{OWN_FOLDER}/{step:08}"
        if self._run.is_local:
            directory = Path(self._run.child(place))
            if self._rank == 0:
                shutil.rmtree(directory, ignore_errors=True)  # one that was not finished
                directory.mkdir(parents=True)
            self._barrier()
            write(directory)
        else:
            with TemporaryDirectory() as local:
                write(Path(local))
                self._run.upload(Path(local), place)
        self._barrier()
        if self._rank == 0:
            self._run.write(f"{place}/{_WHOLE}", b"")
            for old in self._steps()[: -self._keep]:
                self._run.filesystem.delete_dir(self._run.child(f"{OWN_FOLDER}/{old:08}"))
        self._barrier()

    def _steps(self) -> list[int]:
        found = self._run.inside(OWN_FOLDER).list(recursive=True)
        return sorted(int(Path(info.path).parent.name) for info in found if info.base_name == _WHOLE)
