"""What a run needs from whatever started its processes: `Host`. `OwnHost` serves processes that Ray did not start."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from spanlake.data.stream import ExampleStream, Pool, PoolPlan
from spanlake.storage import Place
from spanlake.training.directory import OWN_FOLDER
from spanlake.training.tracking import Send
from spanlake.training.worker import Worker

_WHOLE = "whole"  # the file that is written last into a checkpoint


class Host(Protocol):
    """All processes of a run call its methods together."""

    @property
    def sends(self) -> Sequence[Send]:
        """The functions that the first process calls with each record of measurements."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """Returns a context that gives the directory of the last checkpoint, or None."""

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, Any]) -> None:
        """Makes a checkpoint; `write` puts this process's part into a directory."""

    def pools(self, stream: ExampleStream, plans: Sequence[PoolPlan]) -> Iterator[Pool]:
        """Reads the pools of a stream, in the order of their plans.

        Raises UserError, in all processes, for a file that cannot be read.
        """


class OwnHost:
    """Checkpoints are `RUN/checkpoints/STEP/`; one without its last file is ignored. Each process reads the data."""

    sends: Sequence[Send] = ()

    def __init__(self, run: Place, keep: int, worker: Worker) -> None:
        self._run, self._keep, self._worker = run, keep, worker

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
            if self._worker.leads:
                shutil.rmtree(directory, ignore_errors=True)  # left by a run that stopped while it wrote
                directory.mkdir(parents=True)
            self._worker.wait()
            write(directory)
        else:
            with TemporaryDirectory() as local:
                write(Path(local))
                self._run.upload(Path(local), place)
        self._worker.wait()
        if self._worker.leads:
            self._run.write(f"{place}/{_WHOLE}", b"")
            for old in self._steps()[: -self._keep]:
                self._run.filesystem.delete_dir(self._run.child(f"{OWN_FOLDER}/{old:08}"))
        self._worker.wait()

    def pools(self, stream: ExampleStream, plans: Sequence[PoolPlan]) -> Iterator[Pool]:
        return stream.load_ahead(plans)

    def _steps(self) -> list[int]:
        found = self._run.inside(OWN_FOLDER).list(recursive=True)
        return sorted(int(Path(info.path).parent.name) for info in found if info.base_name == _WHOLE)
