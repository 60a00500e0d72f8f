"""Units on Ray Data: a pool of actors, each with a loaded model, that read, extract and commit one unit after another.

Only descriptions of units travel through Ray, and only counts come back. The one module of extraction that imports Ray.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset

import spanlake
from spanlake.errors import ShortfallError, UserError, one_line
from spanlake.extraction.plan import Unit, plan_table, units_of
from spanlake.extraction.rows import SourceReadError
from spanlake.extraction.store import describe
from spanlake.extraction.unit import Job, UnitCounts, UnitRunner
from spanlake.inference.extractor import Extractor

_OBJECT_STORE_BYTES = 300_000_000  # descriptions and counts are all it holds
_TASKS = 10_000  # at most about so many, whatever the number of units
_ATTEMPTS = 8  # at a unit: three rows that kill their workers are found by then
_HEADROOM_CPUS = 0.5  # left to Ray's own processes


class LoadExtractor(Protocol):
    """Makes a worker's extractor. It is sent to the worker."""

    def __call__(self, *, device: str) -> Extractor: ...


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster while the block lasts: this process's, RAY_ADDRESS's (a job has one), or a new one on this machine.

    Raises: UserError where no cluster answers at RAY_ADDRESS; ShortfallError where a new one cannot start.
    """
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address)
    else:
        _start()
    with redirect_stdout(sys.stderr):  # where Ray prints of workers that died
        try:
            with _stopping_at_sigterm():
                yield
        finally:
            ray.shutdown()


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


def _connect(address: str) -> None:
    try:
        ray.init(address, runtime_env=_shipped_package(), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds
        raise UserError(f"No Ray cluster answers at RAY_ADDRESS={address} ({one_line(error)}).") from error


def _start() -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its native code would write to our stderr,
    with _native_stderr_closed():  # and says there that it now does not
        try:
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                runtime_env=_local_package(),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # of many kinds
            raise ShortfallError(f"Ray does not start on this machine ({one_line(error)}).") from error


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_PACKAGE = Path(spanlake.__path__[0]).resolve()


def _is_installed() -> bool:
    return _PACKAGE.parent.name in ("site-packages", "dist-packages")


def _shipped_package() -> dict[str, Any]:
    """The runtime environment that brings this package to nodes which cannot be expected to have it installed."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    if _is_installed() or "py_modules" in submitted:
        return {}
    return {"py_modules": [str(_PACKAGE)], "excludes": ["__pycache__"]}


def _local_package() -> dict[str, Any]:
    if _is_installed():
        return {}
    paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}


@dataclass(frozen=True)
class Workers:
    """The actor pool: how many, on what, and each one's share of the cluster."""

    count: int
    device: str
    cpus: float
    gpus: int
    threads: int  # that each computes with


def share_cluster(asked: int | None, device: str) -> Workers:
    """Divide the cluster among workers: one for each GPU, or one for each four CPUs, unless a number is asked for.

    Raises: UserError where a GPU is asked for and the cluster has none.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise UserError("--device cuda needs a GPU and the Ray cluster has none: use --device cpu.")
    on_gpu = gpus > 0 and device != "cpu"
    count = min(asked or gpus, gpus) if on_gpu else asked or max(1, int(cpus) // 4)
    node_cpus = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    share = min(cpus / count, node_cpus)
    return Workers(
        count=count,
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
    on_unit: Callable[[UnitCounts], None],
) -> list[str]:
    """Do all units of a plan; `on_unit` is called with the counts of each as it is committed.

    Returns: a sentence for each unit that cannot be read, or kills its workers; the others are committed.
    Raises: ShortfallError where the work cannot go on. What is committed stays.
    """
    _quieten()
    problems: list[str] = []
    per_task = -(-plan.num_rows // _TASKS)
    attempts = ray.remote(num_cpus=0)(_Attempts).remote(_ATTEMPTS)
    results = ray.data.from_arrow(_parts(plan, per_task)).map_batches(
        _Worker,
        fn_constructor_args=(job, load, workers, attempts),
        compute=ActorPoolStrategy(size=workers.count),
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
            on_unit(UnitCounts(**answer))
    return problems


def _answers(results: Dataset) -> Iterator[dict[str, Any]]:
    rows = iter(results.iter_rows())
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of many kinds; workers catch their own, so it is Ray that cannot go on
            raise _shortfall(describe(error)) from error
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


class _Attempts:
    """Knows how often each unit in work was begun, and over which of its rows workers died: Ray retries a task without
    end if its actor dies each time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: Counter[str] = Counter()
        self._at: dict[str, int] = {}
        self._deaths: dict[str, Counter[int]] = {}

    def begin(self, unit: str) -> tuple[int, set[int]] | None:
        """Which attempt this is, from 1, and the rows that killed their workers; None if it is one too many."""
        self._begun[unit] += 1
        deaths = self._deaths.setdefault(unit, Counter())
        if unit in self._at:
            deaths[self._at.pop(unit)] += 1
        if self._begun[unit] > self._limit:
            return None
        # A worker may die of something else. That it does so twice over the same row is no chance.
        return self._begun[unit], {row for row, count in deaths.items() if count > 1}

    def at(self, unit: str, row: int) -> None:
        self._at[unit] = row

    def end(self, unit: str) -> None:
        for known in (self._begun, self._at, self._deaths):
            known.pop(unit, None)


class _Worker:
    """One actor of the pool. It answers for each unit with its counts, a `problem`, or why work has `stopped`."""

    def __init__(self, job: Job, load: LoadExtractor, workers: Workers, attempts: Any) -> None:
        """`attempts` is the handle of an _Attempts."""
        self._attempts = attempts
        self._stopped: str | None = None
        try:
            self._runner = _make_runner(job, load, workers)
        except Exception as error:  # to be told in a sentence, where Ray would show its own inside
            self._stop(error)

    def __call__(self, units: pa.Table) -> dict[str, list[str]]:
        return {"answer": [json.dumps(self._answer(unit)) for unit in units_of(units)]}

    def _answer(self, unit: Unit) -> dict[str, Any]:
        if self._stopped is not None:
            return {"stopped": self._stopped}
        begun = ray.get(self._attempts.begin.remote(unit.name))
        if begun is None:
            return {"problem": f"{unit.describe()}: worker after worker died over it"}
        attempt, deadly = begun

        def may_read(row: int) -> bool:
            if row not in deadly:
                ray.get(self._attempts.at.remote(unit.name, row))
            return row not in deadly

        try:
            counts = self._runner.run(unit, None if attempt == 1 else may_read)
        except SourceReadError as error:  # the units of sound files go on
            return {"problem": str(error)}
        except Exception as error:
            self._stop(error)
            return {"stopped": self._stopped}
        self._attempts.end.remote(unit.name)
        return vars(counts)

    def _stop(self, error: Exception) -> None:
        self._stopped = describe(error)
        logging.getLogger(__name__).exception("worker stopped")  # in Ray's log of this worker


def _make_runner(job: Job, load: LoadExtractor, workers: Workers) -> UnitRunner:
    torch.set_num_threads(workers.threads)
    extractor = load(device=workers.device)
    found, wanted = extractor.package.fingerprint, job.model["fingerprint"]
    if found != wanted:
        raise ShortfallError(
            f"a worker's {job.model['name']} has the fingerprint {found[:12]}, not {wanted[:12]}: "
            "give every node the same package"
        )
    precision = str(extractor.precision).removeprefix("torch.")
    return UnitRunner(job, extractor, {"device": str(extractor.device), "precision": precision})
