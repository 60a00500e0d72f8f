"""Measures what a unit costs the driver and object storage: `python benchmarks/lake.py --units 1000 10000 100000`.

It makes a source of that many rows with one row in each unit, so that the rows cost next to nothing. Then it plans,
commits, resumes, grows and audits the output in this machine's temporary directory, without Ray and with an extractor
that finds nothing. Each step runs in a process of its own. Its memory is the growth of the process's peak resident set
during the step.

The same steps on a server with the S3 protocol (moto) count the requests.

`python benchmarks/lake.py --gigabytes 5` does the same with one file of that size, whose rows are 50 kB long.
"""

import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from spanlake.decoding import Entity
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.ledger import Request, prepare, read_ledger
from spanlake.extraction.output.plan import UNIT_ROWS, units_of
from spanlake.extraction.run.unit import Job, UnitRunner
from spanlake.extraction.source.open import read_source
from spanlake.inference.settings import Settings
from spanlake.storage import locate

S3_UNITS = 40
LONG_ROW = 50_000  # bytes
LONG_ROWS_AT_ONCE = 2000  # in a row group


class Nothing:
    """An extractor that finds nothing."""

    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        return ([] for _ in requests)


def measure(counts: list[int], rows_per_file: int) -> None:
    print("units     step       seconds  processor  us/unit   MiB more  bytes/unit of the plan")
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            source, output = f"{directory}/source", f"{directory}/output"
            write_source(Path(source), count, rows_per_file)
            for step in (plan, commit, resume, grow, check):
                cost = apart(step, source, output, 1)
                plans = sorted(Path(output).glob("_spanlake/plan-*"), key=lambda path: path.stat().st_mtime)
                size = f"{plans[-1].stat().st_size / count:.1f}"
                print(
                    f"{count:<9} {step.__name__:<10} {cost.seconds:7.1f}  {cost.processor_seconds:9.1f}  "
                    f"{cost.seconds / count * 1e6:7.0f}  {cost.more_mib:9.1f}  {size}",
                    flush=True,
                )
    count_requests()


def measure_file(gigabytes: float) -> None:
    rows = int(gigabytes * 1e9 / LONG_ROW)
    with tempfile.TemporaryDirectory() as directory:
        source, output = f"{directory}/source", f"{directory}/output"
        write_long_rows(Path(source), rows)
        size = Path(source, "long.parquet").stat().st_size
        print(f"one file of {size / 1e9:.2f} GB with {rows} rows\nstep       seconds  processor   MiB more")
        for step in (plan, commit, resume, check):
            cost = apart(step, source, output, UNIT_ROWS)
            seconds = f"{cost.seconds:7.1f}  {cost.processor_seconds:9.1f}"
            print(f"{step.__name__:<10} {seconds}  {cost.more_mib:9.1f}", flush=True)


def write_source(directory: Path, rows: int, rows_per_file: int) -> None:
    directory.mkdir()
    for first in range(0, rows, rows_per_file):
        ids = range(first, min(rows, first + rows_per_file))
        table = pa.table({"id": ids, "text": [f"Row {row} speaks of Ada" for row in ids]})
        pq.write_table(table, directory / f"part-{first // rows_per_file:06d}.parquet")


def write_long_rows(directory: Path, rows: int) -> None:
    directory.mkdir()
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    filler = "speaks of Ada and of Charles. " * (LONG_ROW // 30)
    with pq.ParquetWriter(directory / "long.parquet", schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, LONG_ROWS_AT_ONCE):
            ids = range(first, min(rows, first + LONG_ROWS_AT_ONCE))
            writer.write_table(pa.table({"id": ids, "text": [f"Row {row} {filler}" for row in ids]}, schema))


class Cost(NamedTuple):
    """What a step costs its process. `more_mib` is the growth of its peak resident set."""

    seconds: float
    processor_seconds: float
    more_mib: float


def apart(step: Callable[[str, str, int], None], source: str, output: str, unit_rows: int) -> Cost:
    """Runs a step in a new process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_timed, args=(theirs, step, source, output, unit_rows))
    process.start()
    theirs.close()
    answer: Cost = mine.recv()
    process.join()
    return answer


def _timed(answer: Any, step: Callable[[str, str, int], None], source: str, output: str, unit_rows: int) -> None:
    before, started, spent = _peak(), time.monotonic(), time.process_time()
    step(source, output, unit_rows)
    answer.send(Cost(time.monotonic() - started, time.process_time() - spent, _peak() - before))


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def request_for(source: str, output: str, unit_rows: int) -> Request:
    found = read_source(source, ("text",))
    settings = Settings.make(["person"])
    return Request(found, locate(output), ("text",), settings, "nothing", "f" * 64, "float32", unit_rows)


# --- steps --------------------------------------------------------------------------------------------------------


def plan(source: str, output: str, unit_rows: int) -> None:
    prepare(request_for(source, output, unit_rows)).save()


def commit(source: str, output: str, unit_rows: int) -> None:
    request = request_for(source, output, unit_rows)
    ledger = prepare(request)
    ledger.save()
    runner = UnitRunner(Job.of(request, ledger), Nothing())
    for unit in units_of(ledger.plan):
        runner.run(unit)
    ledger.clean()


def resume(source: str, output: str, unit_rows: int) -> None:
    ledger = prepare(request_for(source, output, unit_rows))
    assert not ledger.pending(ledger.committed()).num_rows


def grow(source: str, output: str, unit_rows: int) -> None:
    """Adds a file with one row to the source and to the plan, and commits it."""
    pq.write_table(
        pa.table({"id": [-1], "text": ["new"]}),
        locate(source).child("new.parquet"),
        filesystem=locate(source).filesystem,
    )
    request = request_for(source, output, unit_rows)
    ledger = prepare(request)
    ledger.save()
    runner = UnitRunner(Job.of(request, ledger), Nothing())
    for unit in units_of(ledger.pending(ledger.committed())):
        runner.run(unit)
    ledger.clean()


def check(source: str, output: str, unit_rows: int) -> None:
    result = audit(read_ledger(locate(output)))
    assert result.complete, result.problems[:3]


# --- requests -----------------------------------------------------------------------------------------------------


def count_requests() -> None:
    """Prints the requests of each step to object storage, by method and kind."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None: ...

    application, seen = DomainDispatcherApplication(create_backend_app), Counter[str]()

    def counting(environment: dict[str, Any], start: Callable) -> Iterable[bytes]:
        seen[_kind(environment)] += 1
        return application(environment, start)

    server = make_server("127.0.0.1", 0, counting, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    options = {"endpoint_override": address, "scheme": "http", "region": "us-east-1", "allow_bucket_creation": True}
    storage = fs.S3FileSystem(access_key="name", secret_key="secret", **options)
    storage.create_dir("lake")
    rows = pa.table({"id": range(S3_UNITS), "text": [f"Row {row} speaks of Ada" for row in range(S3_UNITS)]})
    pq.write_table(rows, "lake/in/a.parquet", filesystem=storage, row_group_size=1)
    source, output = (
        f"s3://name:secret@lake/{name}?endpoint_override={address}&scheme=http&region=us-east-1"
        for name in ("in", "out")
    )
    print(f"\nrequests to object storage for one file and {S3_UNITS} units")
    for step in (plan, commit, resume, check):
        seen.clear()
        step(source, output, 1)
        kinds = ", ".join(f"{kind} {count}" for kind, count in seen.most_common())
        print(f"{step.__name__:<10} {sum(seen.values()):>5}  {kinds}", flush=True)
    server.shutdown()


def _kind(environment: dict[str, Any]) -> str:
    query = environment.get("QUERY_STRING", "")
    method = environment["REQUEST_METHOD"]
    if "list-type" in query:
        return "LIST"
    if "HTTP_X_AMZ_COPY_SOURCE" in environment:
        return "COPY"
    if "upload" in query:
        return f"{method} part of upload"
    return method
