"""Units whose output or source fails: nothing is lost or doubled, and the same command mends what is missing."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_s3 import FaultyS3, faulty_s3
from units import run_units

from spanlake import cli
from spanlake.decoding import Entity
from spanlake.errors import ShortfallError, UserError
from spanlake.extraction.output import lease
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.lease import held
from spanlake.extraction.output.ledger import Ledger, Request, prepare, read_ledger
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.run import unit as unit_module
from spanlake.extraction.run.unit import Job, UnitRunner
from spanlake.extraction.source.model import SourceReadError
from spanlake.extraction.source.open import SourceHandle, read_source
from spanlake.inference.settings import Settings
from spanlake.storage import Place, locate

ROWS = 60
_NOBODY = 65534


class Ada:
    def stream(self, requests: Iterable[tuple[str, Settings]], on_pass: object = None) -> Iterator[list[Entity]]:
        for text, _ in requests:
            start = text.index("Ada")
            yield [Entity(start, start + 3, "Ada", "person", 0.75)]


def write_source(place: Place) -> None:
    place.filesystem.create_dir(place.path)
    texts = [f"Row {row} speaks of Ada {os.urandom(500).hex()}" for row in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": texts})
    pq.write_table(table, place.child("a.parquet"), filesystem=place.filesystem, row_group_size=10)


def request(source: str, output: str) -> Request:
    found = read_source(source, ("text",))
    settings = Settings.make(["person"])
    return Request(found, locate(output), ("text",), settings, "ada", "f" * 64, "float32", unit_rows=10)


def work(source: str, output: str) -> None:
    asked = request(source, output)
    ledger = prepare(asked)
    run_units(asked, ledger, Ada())
    ledger.clean()


def ids(output: Place) -> list[int]:
    paths = [info.path for info in output.list(recursive=False) if info.path.endswith(".parquet")]
    return sorted(row for path in paths for row in pq.read_table(path, filesystem=output.filesystem)["id"].to_pylist())


def check(output: str) -> None:
    """Checks that the output has each row once, and no unfinished file."""
    place = locate(output)
    result = audit(read_ledger(place))
    assert result.complete and result.output_rows == ROWS and result.by_label == {"person": ROWS}, result.problems
    assert ids(place) == list(range(ROWS))
    assert not locate(output).inside("_spanlake/tmp").list(recursive=True)


@pytest.fixture
def source(tmp_path: Path) -> str:
    write_source(locate(str(tmp_path / "source")))
    return str(tmp_path / "source")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Returns the root of a file system of 64 KiB."""
    root = tmp_path / "disk"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield root
    subprocess.run(["umount", "-l", root], check=True)


def remount(root: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", root], check=True)


def test_a_full_disk(source: str, disk: Path) -> None:
    output = str(disk / "out")
    with pytest.raises(OSError) as raised:
        work(source, output)
    assert raised.value.errno == errno.ENOSPC
    assert 0 < len(ids(locate(output))) < ROWS
    assert not list(disk.glob("out/_spanlake/tmp/*/*")), "the unfinished file takes the room of others"
    remount(disk, "size=1m")
    work(source, output)
    check(output)


def test_an_output_that_becomes_read_only(source: str, disk: Path) -> None:
    output = str(disk / "out")
    remount(disk, "size=1m")
    asked = request(source, output)
    ledger = prepare(asked)
    run_units(asked, ledger, Ada(), slice(0, 2))
    remount(disk, "ro")
    with pytest.raises(UserError, match="out cannot be written to .*[Rr]ead-only"):
        work(source, output)
    with pytest.raises(UserError, match="cannot be written to .*[Rr]ead-only"), held(ledger):
        raise AssertionError("it must not begin")
    with pytest.raises(ShortfallError, match="every unit is committed, but .*tmp cannot be emptied"):
        ledger.clean()
    remount(disk, "rw")
    work(source, output)
    check(output)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Makes this process one without root's permissions, and returns a directory that belongs to it."""
    directory, before = Path(tempfile.mkdtemp()), os.geteuid()
    if before == 0:
        os.chown(directory, _NOBODY, -1)
        os.seteuid(_NOBODY)
    yield directory
    os.seteuid(before)
    shutil.rmtree(directory)


def test_a_place_that_may_not_be_written_to(nobody: Path) -> None:
    write_source(locate(str(nobody / "source")))
    (nobody / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="locked/out cannot be written to .*Permission denied"):
        prepare(request(str(nobody / "source"), str(nobody / "locked" / "out"))).save()


def begun(source: str, output: str) -> tuple[Request, Ledger]:
    """Writes a source and extracts its first two units."""
    write_source(locate(source))
    asked = request(source, output)
    ledger = prepare(asked)
    run_units(asked, ledger, Ada(), slice(0, 2))
    return asked, ledger


def test_an_output_whose_permissions_are_lost_halfway(nobody: Path) -> None:
    source, output = str(nobody / "source"), str(nobody / "out")
    asked, ledger = begun(source, output)
    for name in ("out/_spanlake/tmp", "out/_spanlake", "out"):
        (nobody / name).chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        UnitRunner(Job.of(asked, ledger), Ada()).run(list(units_of(ledger.plan))[2])
    with pytest.raises(UserError, match="out cannot be written to .*Permission denied"):
        work(source, output)
    assert len(ids(locate(output))) == 20
    (nobody / "out").chmod(0)
    with pytest.raises(UserError, match="out.* cannot be read .*Permission denied"):
        work(source, output)
    for name in ("out", "out/_spanlake", "out/_spanlake/tmp"):
        (nobody / name).chmod(0o700)
    work(source, output)
    check(output)


def test_a_source_whose_permissions_are_lost_halfway(nobody: Path) -> None:
    source, output = str(nobody / "source"), str(nobody / "out")
    asked, ledger = begun(source, output)
    (nobody / "source/a.parquet").chmod(0)
    with pytest.raises(SourceReadError, match="rows 20 to 30 of a.parquet cannot be read .*Permission denied"):
        UnitRunner(Job.of(asked, ledger), Ada()).run(list(units_of(ledger.plan))[2])
    with pytest.raises(UserError, match="a.parquet cannot be read .*Permission denied"):
        work(source, output)
    (nobody / "source/a.parquet").chmod(0o600)
    work(source, output)
    check(output)


def test_a_file_that_may_not_grow(source: str, tmp_path: Path) -> None:
    """The limit of a file's size, as `ulimit -f` sets it, takes the place of a quota."""
    output = str(tmp_path / "out")
    asked = request(source, output)
    ledger = prepare(asked)
    ledger.save()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            UnitRunner(Job.of(asked, ledger), Ada()).run(next(units_of(ledger.plan)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not ids(locate(output)) and not list(tmp_path.glob("out/_spanlake/tmp/*/*.parquet"))
    work(source, output)
    check(output)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """`python benchmarks/lake.py --gigabytes 5` shows it for a large file."""
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "long.parquet", schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, 64, 4):
            texts = [f"Row {row} speaks of Ada" + "." * (1 << 20) for row in range(first, first + 4)]
            writer.write_table(pa.table([range(first, first + 4), texts], schema=schema))
    handle = SourceHandle.of(read_source(str(tmp_path), ("text",)), ("text",))
    (file,) = read_source(str(tmp_path), ("text",)).files
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for batch in handle.open().read(file.whole()):
        most, rows = max(most, pa.total_allocated_bytes() - before), rows + batch.num_rows
    assert rows == 64 and most < 40 << 20


def test_many_files_of_one_row(tmp_path: Path) -> None:
    """`python benchmarks/lake.py --units 10000 --rows-per-file 1` does the same with 10,000 files."""
    directory, output = tmp_path / "source", str(tmp_path / "out")
    for row in range(300):
        path = directory / f"day={row % 7}" / f"{row}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [row], "text": [f"Row {row} speaks of Ada"]}), path)
    asked = request(str(directory), output)
    ledger = prepare(asked)
    run_units(asked, ledger, Ada(), slice(0, None, 2))
    work(str(directory), output)
    result = audit(read_ledger(locate(output)))
    assert result.complete and result.output_rows == 300
    assert ids(locate(output)) == list(range(300))


@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied", "of another request"])
def test_a_file_that_somebody_has_damaged(
    source: str, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    work(source, output)
    paths = sorted((tmp_path / "out").glob("*.parquet"))
    if damage == "deleted":
        paths[2].unlink()
    elif damage == "of another request":
        shutil.copy(paths[1], paths[2])
    else:
        paths[2].write_bytes(paths[2].read_bytes()[: 1000 if damage == "truncated" else 0])
    assert cli.main(["audit", output]) == 1
    assert "missing: rows 20 to 30 of a.parquet" in capsys.readouterr().err
    work(source, output)
    check(output)
    assert cli.main(["audit", output]) == 0
    assert not (tmp_path / "out/_spanlake/damaged.json").exists()


def test_a_task_that_is_repeated_knows_its_committed_units(source: str, tmp_path: Path) -> None:
    asked = request(source, str(tmp_path / "out"))
    ledger = prepare(asked)
    ledger.save()
    job = Job.of(asked, ledger)
    first, second, third, *_ = units_of(ledger.plan)
    counts = UnitRunner(job, Ada()).run(first)
    UnitRunner(job, Ada()).run(second)
    again = UnitRunner(job, Ada())
    found = again.committed(first)
    assert found is not None and found.seconds >= 0
    assert (found.rows, found.failed_rows, found.by_label) == (10, 0, counts.by_label) == (10, 0, {"person": 10})
    assert again.committed(third) is None
    assert UnitRunner(Job.of(asked, ledger, frozenset({first.name})), Ada()).committed(first) is None
    path = tmp_path / "out" / f"{second.name}.parquet"
    shutil.copy(tmp_path / "out" / f"{first.name}.parquet", path)
    assert again.committed(second) is None
    path.write_bytes(b"PAR1")
    assert again.committed(second) is None


def test_a_damaged_file_that_is_put_back_is_not_extracted_again(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    work(source, output)
    path = sorted((tmp_path / "out").glob("*.parquet"))[2]
    content = path.read_bytes()
    path.write_bytes(b"")
    assert cli.main(["audit", output]) == 1
    path.write_bytes(content)
    assert cli.main(["audit", output]) == 0
    ledger = read_ledger(locate(output))
    assert not ledger.pending(ledger.committed()).num_rows


def test_two_drivers_at_once_write_each_row_once(source: str, tmp_path: Path) -> None:
    """The lease refuses the second driver. Here both work on the same units, as if the lease had failed."""
    output = str(tmp_path / "out")
    asked = request(source, output)
    ledgers = [prepare(asked), prepare(asked)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda ledger: run_units(asked, ledger, Ada()), ledgers))
    ledgers[0].clean()
    check(output)


def test_a_lease_does_not_depend_on_clocks(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver on a machine whose clock is a day off is alive while it beats, and dead when it stops."""
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_DEAD_SECONDS", 1.5)
    ledger = prepare(request(source, str(tmp_path / "out")))
    ledger.save()
    path = tmp_path / "out/_spanlake/driver.json"
    with held(ledger):
        shifted = time.time() + 86_400
        os.utime(path, (shifted, shifted))
        with pytest.raises(UserError, match="Another run writes to"):
            lease.check_free(ledger.output)
        driver = path.read_text()
    path.write_text(driver.replace(lease.socket.gethostname(), "elsewhere"))
    os.utime(path, (shifted, shifted))
    lease.check_free(ledger.output)


# --- object storage -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3("lake") as server:
        write_source(locate(server.uri("lake/in")))
        yield server


@pytest.fixture
def storage(server: FaultyS3) -> Iterator[FaultyS3]:
    yield server
    server.refuses = lambda method, path, query: False
    server.delay = lambda method, path, query: 0.0
    server.refused.clear()


def test_storage_that_refuses_some_requests_and_is_slow(storage: FaultyS3) -> None:
    numbers = count()
    storage.refuses = lambda method, path, query: next(numbers) % 9 == 0
    storage.delay = lambda method, path, query: 0.005
    work(storage.uri("lake/in"), storage.uri("lake/some"))
    assert len(storage.refused) > 5
    check(storage.uri("lake/some"))


@pytest.mark.slow
def test_storage_that_refuses_for_longer_than_its_client_waits(
    storage: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_module, "_WAITS", (0.1,))
    moves = count()

    def refuses(method: str, path: str, query: str) -> bool:
        return path.count("/") == 3 and path.endswith("-10.parquet") and method == "PUT" and 2 <= next(moves) < 35

    storage.refuses = refuses
    work(storage.uri("lake/in"), storage.uri("lake/long"))
    assert len(storage.refused) == 33
    check(storage.uri("lake/long"))


@pytest.mark.slow
def test_storage_that_gives_no_more_answers_loses_nothing(storage: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_module, "_WAITS", ())
    output, moved = storage.uri("lake/never"), count()
    storage.refuses = lambda method, path, query: "-10.parquet" in path and method == "PUT" and next(moved) >= 2
    with pytest.raises(OSError, match="SLOW_DOWN"):
        work(storage.uri("lake/in"), output)
    storage.refuses = lambda method, path, query: False
    assert len(ids(locate(output))) == 20
    work(storage.uri("lake/in"), output)
    check(output)


@pytest.mark.slow
def test_storage_that_cannot_be_listed_is_named_in_one_sentence(storage: FaultyS3) -> None:
    ledger = prepare(request(storage.uri("lake/in"), storage.uri("lake/unlisted")))
    storage.refuses = lambda method, path, query: "list-type" in query
    with pytest.raises(UserError, match="cannot be listed .*SLOW_DOWN") as raised:
        ledger.committed()
    assert "secret" not in str(raised.value)
