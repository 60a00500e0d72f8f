"""An Extractor in other processes: it works in forks, and pools carry it by its model and settings."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from spanlake import Entity, Extractor, PackageError, UserError
from spanlake.inference.accelerator import AcceleratorScorer
from spanlake.inference.settings import Settings
from spanlake.package import load_package, repack

TEXTS = ["Ada met Charles Babbage in London", "", "Marie Curie found radium in Warsaw. " * 40] * 20
LABELS = ["person", "city"]
SECONDS = 120  # after which a process counts as hanging


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    """It has worked on several lanes, and the process has computed on several cores."""
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32", threads=2)
    extractor.extract(TEXTS, LABELS)
    torch.rand(600, 600) @ torch.rand(600, 600)
    return extractor


@pytest.fixture(scope="module")
def expected(extractor: Extractor) -> list[list[Entity]]:
    found = extractor.extract(TEXTS, LABELS, 0.3)
    assert sum(map(len, found)) > 50
    return found


def find(extractor: Extractor) -> list[list[Entity]]:
    return extractor.extract(TEXTS, LABELS, 0.3)


def identity(extractor: Extractor) -> tuple[int, int, int]:
    return os.getpid(), id(extractor), extractor.batch_tokens


def forked(work: Callable[[], Any]) -> Any:
    """Returns what `work` returns or raises in a child of os.fork. Fails if the child hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = work()
        except BaseException as error:
            result = error
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    alarm = threading.Timer(SECONDS, os.kill, (child, signal.SIGKILL))
    alarm.start()
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    alarm.cancel()
    assert answer, "the child hung"
    return pickle.loads(answer)


def test_it_works_in_a_fork_and_a_fork_of_the_fork(extractor: Extractor, expected: list[list[Entity]]):
    assert forked(lambda: find(extractor)) == expected
    assert forked(lambda: (find(extractor), forked(lambda: find(extractor)))) == (expected, expected)
    assert find(extractor) == expected


def test_threads_of_a_fork_share_it(extractor: Extractor, expected: list[list[Entity]]):
    def work() -> list[Any]:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(find(extractor))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert forked(work) == [expected] * 6


def test_a_fork_closes_its_own_copy(extractor: Extractor, expected: list[list[Entity]]):
    def work() -> Any:
        extractor.close()
        return find(extractor)

    error = forked(work)
    assert isinstance(error, UserError) and "is closed" in str(error)
    assert find(extractor) == expected


def test_what_was_closed_before_the_fork_stays_closed(tiny_model_dir: Path):
    closed = Extractor.load(str(tiny_model_dir), device="cpu")
    closed.close()
    assert "is closed" in str(forked(lambda: find(closed)))
    assert "is closed" in str(forked(lambda: pickle.dumps(closed)))


def test_a_stream_does_not_go_on_in_a_fork(extractor: Extractor, expected: list[list[Entity]]):
    settings = Settings.make(LABELS, 0.3)
    stream = extractor.stream((text, settings) for text in TEXTS)
    assert next(stream) == expected[0]
    error = forked(lambda: list(stream))
    assert isinstance(error, UserError) and "begin another one here" in str(error)
    assert list(stream) == expected[1:]


def test_on_an_accelerator_a_fork_is_told_what_to_do(tiny_model_dir: Path):
    """What runs on an accelerator runs on the CPU here, because this machine may have no accelerator."""
    extractor = Extractor.load(str(tiny_model_dir), device="cpu")
    extractor.scorer = AcceleratorScorer(extractor.package, torch.device("cpu"), torch.float32)
    error = forked(lambda: find(extractor))
    assert isinstance(error, UserError)
    assert "load the model in this process, or start processes by spawn" in str(error)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_of_processes_carry_it(extractor: Extractor, expected: list[list[Entity]], method: str):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(find, extractor).result(SECONDS) == expected
        first, second = (pool.submit(identity, extractor).result(SECONDS) for _ in range(2))
    assert first == second and first[0] != os.getpid()  # one model for all tasks of a process


def test_a_process_of_multiprocessing_shares_it_by_fork(extractor: Extractor):
    process = multiprocessing.get_context("fork").Process(target=find, args=(extractor,))
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0


def test_a_pickle_holds_settings_and_no_weights(
    extractor: Extractor, expected: list[list[Entity]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pickled = pickle.dumps(extractor)
    assert len(pickled) < 1000
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(pickled)
    assert copy is not extractor and pickle.loads(pickled) is copy
    assert (copy.lanes, copy.precision, find(copy)) == (2, torch.float32, expected)
    copy.close()
    again = pickle.loads(pickled)
    assert find(again) == expected
    again.close()


def test_a_relative_directory_is_found_from_anywhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny_model_dir.parent)
    pickled = pickle.dumps(Extractor.load(tiny_model_dir.name, device="cpu"))
    monkeypatch.chdir(tmp_path)
    with pickle.loads(pickled) as copy:
        assert copy.package.name == "tiny"


def test_a_model_that_has_changed_is_refused(tiny_model_dir: Path, tmp_path: Path):
    package = load_package(tiny_model_dir)
    repack(package, tmp_path / "model", name="tiny", int8=False)
    pickled = pickle.dumps(Extractor.load(str(tmp_path / "model"), device="cpu"))
    (tmp_path / "model").rename(tmp_path / "before")
    repack(package, tmp_path / "model", name="tiny", int8=True)
    with pytest.raises(PackageError, match="has changed since the Extractor was pickled"):
        pickle.loads(pickled)


def test_an_extractor_without_a_name_cannot_be_pickled(tiny_model_dir: Path):
    extractor = Extractor(load_package(tiny_model_dir), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="was not made by Extractor.load"):
        pickle.dumps(extractor)


def test_forks_of_a_pool_begin_while_the_parent_works(extractor: Extractor, expected: list[list[Entity]]):
    """The locks that the parent's threads hold at the fork must not stop the child."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            find(extractor)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            time.sleep(0.05)
            assert forked(lambda: find(extractor)) == expected
    finally:
        stop.set()
        thread.join()
