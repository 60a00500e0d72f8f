"""Units on Ray Data: a pool of actors, each with a loaded model, that read, extract and commit unit after unit.

While one unit of an actor is scored, another is read, tokenized or written. Only descriptions of units travel through
Ray, and only counts come back. The one module of extraction that imports Ray.
"""

import json
import logging
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from spanlake.cluster import cluster as ray_cluster
from spanlake.errors import ShortfallError, UserError, described
from spanlake.extraction.output.plan import plan_table, units_of
from spanlake.extraction.run.board import Board, State, Turn
from spanlake.extraction.run.unit import Job, UnitCounts, UnitRunner
from spanlake.extraction.source.model import SourceReadError, Unit
from spanlake.inference.extractor import Extractor

_OBJECT_STORE_BYTES = 300_000_000  # descriptions and counts are all it holds
_TASKS = 10_000  # at most about so many, whatever the number of units
_HASTY_ATTEMPTS = 3  # at a unit, before its rows are read one by one to find those that kill
_ATTEMPTS = 12  # at a unit: three rows that kill their workers are found by then
_AT_ONCE = 2  # units of one worker
_HEADROOM_CPUS = 0.5  # left to Ray's own processes


class LoadExtractor(Protocol):
    """Makes a worker's extractor. It is sent to the worker."""

    def __call__(self, *, device: str, threads: int) -> Extractor: ...


@contextmanager
def cluster() -> Iterator[None]:
    """The Ray cluster to extract on while the block lasts. Raises as `spanlake.cluster.cluster` does."""
    # Ray prints messages of its raylets, as of workers that died, to stdout until it is shut down.
    with redirect_stdout(sys.stderr), ray_cluster(_OBJECT_STORE_BYTES), _stopping_at_sigterm():
        yield


class Terminated(BaseException):
    """SIGTERM has come, as from `ray job stop` or a cluster that is shut down."""


@contextmanager
def _stopping_at_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated while the block lasts; Ray's own handler would abort the process."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first one is heeded
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@dataclass(frozen=True)
class Workers:
    """The actor pool: how many at least and at most, on what, and each one's share of the cluster."""

    least: int
    most: int
    device: str
    cpus: float
    gpus: int
    threads: int  # that each computes with

    def describe(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def share_cluster(asked: tuple[int, int] | None, device: str) -> Workers:
    """Divide the cluster among workers: one for each GPU, or one for each four CPUs, unless a number is asked for.

    `asked`: at least and at most so many. Where the two differ, the cluster may have no room for the most yet.
    Raises UserError where a GPU is asked for and the cluster has none.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    grows = asked is not None and asked[0] < asked[1]
    if device == "cuda" and not gpus and not grows:
        raise UserError(
            "--device cuda needs a GPU and the Ray cluster has none: use --device cpu, "
            "or --workers MIN:MAX where the cluster starts GPU nodes when they are needed."
        )
    on_gpu = device == "cuda" or (gpus > 0 and device != "cpu")
    default = gpus if on_gpu else max(1, int(cpus) // 4)
    least, most = asked or (default, default)
    if on_gpu and not grows:
        least = most = min(most, gpus)
    count = min(most, max(1, gpus)) if on_gpu else most
    node_cpus = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    share = min(cpus / count, node_cpus)
    return Workers(
        least=least,
        most=most,
        device="cuda" if on_gpu else "cpu",
        cpus=_reserved(share - _HEADROOM_CPUS / count),
        gpus=int(on_gpu),
        threads=max(1, round(share)),
    )


def _reserved(share: float) -> float:
    """CPUs as an actor may reserve them: whole numbers above one, else hundredths."""
    return float(int(share)) if share >= 1 else max(0.01, int(share * 100) / 100)


def run(
    job: Job,
    plan: pa.Table,
    workers: Workers,
    load: LoadExtractor,
    on_unit: Callable[[UnitCounts, State], None],
) -> list[str]:
    """Do all units of a plan; `on_unit` is called with the counts of each as it is committed, and what is in work.

    Returns: a sentence for each unit that cannot be read, or kills its workers; the others are committed.
    Raises ShortfallError where the work cannot go on. What is committed stays.
    """
    _quieten()
    problems: list[str] = []
    per_task = -(-plan.num_rows // _TASKS)
    # It may stand on a node that dies. What it knew is then lost, and known again after as many deaths as before.
    board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote(_ATTEMPTS)
    results = ray.data.from_arrow(_parts(plan, per_task)).map_batches(
        _Worker,
        fn_constructor_args=(job, load, workers, board),
        compute=ActorPoolStrategy(
            min_size=workers.least,
            max_size=workers.most,
            enable_true_multi_threading=True,
            max_concurrent_calls_per_actor=_AT_ONCE,
        ),
        batch_size=per_task,
        batch_format="pyarrow",
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    for answer in _answers(results):
        if "stopped" in answer:
            raise _shortfall(answer["stopped"])
        if "problem" in answer:
            problems.append(answer["problem"])
        else:
            on_unit(UnitCounts(**answer), ray.get(board.state.remote()))
    return problems


def _answers(results: Dataset) -> Iterator[dict[str, Any]]:
    rows = iter(results.iter_rows())
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of many kinds; workers catch their own, so it is Ray that cannot go on
            raise _shortfall(described(error)) from error
        if row is None:
            return
        yield json.loads(row["answer"])


def _shortfall(reason: str) -> ShortfallError:
    return ShortfallError(
        f"the extraction stopped ({reason}); what is committed stays, and the same command goes on from there."
    )


def _parts(plan: pa.Table, size: int) -> list[pa.Table]:
    return [plan_table(units_of(plan.slice(start, size))) for start in range(0, plan.num_rows, size)]


def _quieten() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file in the session's directory is left as it is
            handler.setLevel(logging.CRITICAL)


class _Worker:
    """One actor of the pool. It answers for each unit with its counts, a `problem`, or why work has `stopped`.

    It has up to _AT_ONCE units in work, each in a thread of its own.
    """

    def __init__(self, job: Job, load: LoadExtractor, workers: Workers, board: Any) -> None:
        """`board` is the handle of a Board."""
        self._job = job
        self._board = board
        self._name = uuid.uuid4().hex  # another one after each death, which an actor's own id is not
        self._entry = threading.Lock()
        self._places = threading.Semaphore(_AT_ONCE)
        self._own = threading.local()  # a runner for each thread
        self._stopped: str | None = None
        try:
            self._extractor = _load(job, load, workers)
        except Exception as error:  # to be told in a sentence, where Ray would show its own inside
            self._stop(error)
        else:
            board.join.remote(self._name)

    def __call__(self, units: pa.Table) -> dict[str, list[str]]:
        return {"answer": [json.dumps(self._answer(unit)) for unit in units_of(units)]}

    def _answer(self, unit: Unit) -> dict[str, Any]:
        if self._stopped is not None:
            return {"stopped": self._stopped}
        # A unit over which a worker died is alone in its next one, before it is said to begin there: no other may be
        # blamed for what it does.
        tried: bool = ray.get(self._board.tried.remote(unit.name))
        try:
            with self._place(_AT_ONCE if tried else 1):
                turn: Turn | None = ray.get(self._board.begin.remote(unit.name, self._name))
                if turn is None:
                    return {"problem": f"{unit.describe()}: worker after worker died over it"}
                answer = vars(self._run(unit, turn))
        except SourceReadError as error:  # the units of sound files go on
            answer = {"problem": str(error)}
        except Exception as error:
            self._stop(error)
            return {"stopped": self._stopped}
        self._board.end.remote(unit.name)
        return answer

    @contextmanager
    def _place(self, count: int) -> Iterator[None]:
        with self._entry:  # so that two who need several do not each wait for the other's
            for _ in range(count):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(count)

    def _run(self, unit: Unit, turn: Turn) -> UnitCounts:
        def may_read(row: int) -> bool:
            if row not in turn.deadly:
                ray.get(self._board.at_row.remote(unit.name, row))
            return row not in turn.deadly

        if not hasattr(self._own, "runner"):
            self._own.runner = UnitRunner(self._job, self._extractor, _traits(self._extractor))
        return self._own.runner.run(
            unit,
            on_stage=lambda stage: self._board.at_stage.remote(unit.name, stage),
            may_read=may_read if turn.attempt > _HASTY_ATTEMPTS else None,
        )

    def _stop(self, error: Exception) -> None:
        self._stopped = described(error)
        logging.getLogger(__name__).exception("worker stopped")  # in Ray's log of this worker


def _load(job: Job, load: LoadExtractor, workers: Workers) -> Extractor:
    extractor = load(device=workers.device, threads=workers.threads)
    found, wanted = extractor.package.fingerprint, job.model["fingerprint"]
    if found != wanted:
        raise ShortfallError(
            f"a worker's {job.model['name']} has the fingerprint {found[:12]}, not {wanted[:12]}: "
            "give every node the same package"
        )
    return extractor


def _traits(extractor: Extractor) -> dict[str, str]:
    """What a unit says of how it was computed."""
    return {"device": str(extractor.device), "precision": str(extractor.precision).removeprefix("torch.")}
