"""Processes units on Ray Data, with a pool of actors that each load the model and read, extract and commit units.

While an actor scores one unit, it reads, tokenizes or writes another. Only descriptions of units pass through Ray, and
only counts come back. No other module of extraction imports Ray.
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
from ray.util import metrics as metric_kinds

from spanlake.cluster import cluster as ray_cluster
from spanlake.errors import ShortfallError, UserError, described
from spanlake.extraction.output.plan import plan_table, units_of
from spanlake.extraction.run.board import Board, State, Turn
from spanlake.extraction.run.metrics import RunMetrics
from spanlake.extraction.run.unit import Job, UnitCounts, UnitRunner
from spanlake.extraction.source.model import SourceReadError, Unit
from spanlake.inference.extractor import Extractor

_OBJECT_STORE_BYTES = 300_000_000  # it holds only descriptions and counts
_TASKS = 10_000  # about the most tasks, for any number of units
_HASTY_ATTEMPTS = 3  # at a unit, before its rows are read one by one to find the deadly ones
_ATTEMPTS = 12  # at a unit: enough to find three deadly rows
_AT_ONCE = 2  # units of one worker
_HEADROOM_CPUS = 0.5  # left to Ray's own processes


class LoadExtractor(Protocol):
    """Makes the extractor of a worker. Ray sends it to the worker."""

    def __call__(self, *, device: str, threads: int) -> Extractor: ...


@contextmanager
def cluster() -> Iterator[None]:
    """Provides the Ray cluster inside the block. Raises the same as `spanlake.cluster.cluster`."""
    # Ray prints messages of its raylets to stdout, such as those about dead workers, until it is shut down.
    with redirect_stdout(sys.stderr), ray_cluster(_OBJECT_STORE_BYTES), _stopping_at_sigterm():
        yield


class Terminated(BaseException):
    """The process received SIGTERM, for example from `ray job stop` or from a cluster that shuts down."""


@contextmanager
def _stopping_at_sigterm() -> Iterator[None]:
    """Turns SIGTERM into Terminated inside the block; Ray's own handler would abort the process."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set a handler
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the first one counts
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@dataclass(frozen=True)
class Workers:
    """The actor pool: its least and greatest size, its device, and the share of the cluster for each actor."""

    least: int
    most: int
    device: str
    cpus: float
    gpus: int
    threads: int  # with which each actor computes

    def describe(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def share_cluster(asked: tuple[int, int] | None, device: str) -> Workers:
    """Divides the cluster among workers: one for each GPU or for each four CPUs, unless `asked` gives numbers.

    `asked` is the least and the greatest number. If they differ, the cluster may still have to grow for the greatest.
    Raises UserError if a GPU is requested and the cluster has none.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    grows = asked is not None and asked[0] < asked[1]
    if device == "cuda" and not gpus and not grows:
        raise UserError(
            "--device cuda needs a GPU and the Ray cluster has none: use --device cpu, "
            "or --workers MIN:MAX if the cluster starts GPU nodes on demand."
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
    """Returns CPUs as an actor may reserve them: whole numbers above one, otherwise hundredths."""
    return float(int(share)) if share >= 1 else max(0.01, int(share * 100) / 100)


def run(
    job: Job,
    plan: pa.Table,
    workers: Workers,
    load: LoadExtractor,
    on_unit: Callable[[UnitCounts, State], None],
) -> list[str]:
    """Processes all units of a plan. Calls `on_unit` for each committed unit, with its counts and the state of the run.

    Returns a sentence for each unit that cannot be read, or that kills its workers. All others are committed.
    Raises ShortfallError if the run cannot continue. Committed units stay.
    """
    _quieten()
    problems: list[str] = []
    metrics = RunMetrics(metric_kinds, job.output.uri, sum(plan.column("rows").to_pylist()))
    per_task = -(-plan.num_rows // _TASKS)
    # If its node dies, it restarts empty, and finds deadly rows again after as many deaths as before.
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
            counts, state = UnitCounts(**answer), ray.get(board.state.remote())
            metrics.add(counts, state)
            on_unit(counts, state)
    return problems


def _answers(results: Dataset) -> Iterator[dict[str, Any]]:
    rows = iter(results.iter_rows())
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of many kinds; workers catch their own errors, so this one is Ray's
            raise _shortfall(described(error)) from error
        if row is None:
            return
        yield json.loads(row["answer"])


def _shortfall(reason: str) -> ShortfallError:
    return ShortfallError(
        f"the extraction stopped ({reason}); committed units stay, and the same command continues from there."
    )


def _parts(plan: pa.Table, size: int) -> list[pa.Table]:
    return [plan_table(units_of(plan.slice(start, size))) for start in range(0, plan.num_rows, size)]


def _quieten() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its log file in the session's directory still gets everything
            handler.setLevel(logging.CRITICAL)


class _Worker:
    """One actor of the pool. It answers each unit with its counts, a `problem`, or the reason why it has `stopped`.

    It works on up to _AT_ONCE units, each in its own thread.
    """

    def __init__(self, job: Job, load: LoadExtractor, workers: Workers, board: Any) -> None:
        """`board` is the handle of a Board."""
        self._job = job
        self._board = board
        self._name = uuid.uuid4().hex  # unlike the actor's id, it differs after each restart
        self._entry = threading.Lock()
        self._places = threading.Semaphore(_AT_ONCE)
        self._own = threading.local()  # one runner for each thread
        self._stopped: str | None = None
        try:
            self._extractor = _load(job, load, workers)
        except Exception as error:  # `_answer` reports it in one sentence; Ray would show a traceback
            self._stop(error)
        else:
            board.join.remote(self._name)

    def __call__(self, units: pa.Table) -> dict[str, list[str]]:
        # Ray repeats a whole task if its worker dies, so the first units of a task of several may be committed.
        several = units.num_rows > 1
        return {"answer": [json.dumps(self._answer(unit, maybe_done=several)) for unit in units_of(units)]}

    def _answer(self, unit: Unit, *, maybe_done: bool) -> dict[str, Any]:
        if self._stopped is not None:
            return {"stopped": self._stopped}
        if maybe_done and (done := self._runner().committed(unit)) is not None:
            self._board.end.remote(unit.name)  # in case the worker died before it could say so
            return vars(done)
        # After a worker died over a unit, the next worker processes that unit alone, so that no other unit is blamed if
        # it dies again. It waits until it is alone before it records that the unit begins.
        tried: bool = ray.get(self._board.tried.remote(unit.name))
        try:
            with self._place(_AT_ONCE if tried else 1):
                turn: Turn | None = ray.get(self._board.begin.remote(unit.name, self._name))
                if turn is None:
                    return {"problem": f"{unit.describe()}: too many workers died over it"}
                answer = vars(self._run(unit, turn))
        except SourceReadError as error:  # units of other files continue
            answer = {"problem": str(error)}
        except Exception as error:
            self._stop(error)
            return {"stopped": self._stopped}
        self._board.end.remote(unit.name)
        return answer

    @contextmanager
    def _place(self, count: int) -> Iterator[None]:
        with self._entry:  # one thread at a time, so that two threads that need several do not wait for each other
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

        return self._runner().run(
            unit,
            on_stage=lambda stage: self._board.at_stage.remote(unit.name, stage),
            may_read=may_read if turn.attempt > _HASTY_ATTEMPTS else None,
        )

    def _runner(self) -> UnitRunner:
        if not hasattr(self._own, "runner"):
            self._own.runner = UnitRunner(self._job, self._extractor, _traits(self._extractor))
        runner: UnitRunner = self._own.runner
        return runner

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
    """Returns what the footer of a unit says about its computation."""
    return {"device": str(extractor.device), "precision": str(extractor.precision).removeprefix("torch.")}
