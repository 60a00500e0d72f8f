"""Allows one driver at a time on an output.

OUTPUT/_spanlake/driver.json names the driver at work, which increments `beat` every few seconds. If `beat` does not
change, the driver is dead. The lease only saves work. Correctness does not depend on it: a unit has the same name and
the same rows whoever writes it, so two drivers cannot write a row twice.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import pyarrow as pa

from spanlake.errors import UserError, one_line
from spanlake.extraction.output.ledger import FOLDER, Ledger
from spanlake.storage import Place

_BEAT_SECONDS = 3.0
_DEAD_SECONDS = 15.0  # without a beat
_SETTLE_SECONDS = 0.5  # if two drivers begin together, the last to write within this time has the lease
_FILE = f"{FOLDER}/driver.json"


def check_free(output: Place) -> None:
    """Returns if no driver is at work: at once, or after some seconds if a driver on another machine has died.

    Raises UserError if a driver is alive.
    """
    first = _read(output)
    if first is None or _is_dead(first):
        return
    deadline = time.monotonic() + _DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_SETTLE_SECONDS)
        now = _read(output)
        if now is None:
            return
        if now != first:
            raise _taken(output, now)


@contextmanager
def held(ledger: Ledger) -> Iterator[None]:
    """Makes this process the driver inside the block. Raises UserError if another began at the same moment."""
    output, over = ledger.output, threading.Event()
    own = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": 0}

    def beat() -> None:
        for number in count(1):
            if over.wait(_BEAT_SECONDS):
                return
            with suppress(OSError):  # a store that does not answer may answer at the next beat
                _write(ledger, own | {"beat": number})

    try:
        _write(ledger, own)
    except OSError as error:
        raise UserError(f"{output.uri} cannot be written to ({one_line(error)}).") from error
    time.sleep(_SETTLE_SECONDS)
    now = _read(output)
    if now is not None and now["id"] != own["id"]:
        raise _taken(output, now)
    thread = threading.Thread(target=beat, name="spanlake-driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            output.filesystem.delete_file(output.child(_FILE))


def _taken(output: Place, driver: dict[str, Any]) -> UserError:
    return UserError(
        f"Another run writes to {output.uri} (process {driver['pid']} on {driver['host']}): wait until it is done, "
        "or stop it first."
    )


def _is_dead(driver: dict[str, Any]) -> bool:
    if driver["host"] != socket.gethostname():
        return False
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # the process exists and belongs to another user
        return False
    return False


def _read(output: Place) -> dict[str, Any] | None:
    try:
        with output.filesystem.open_input_stream(output.child(_FILE)) as stream:
            driver = json.loads(stream.read())
        return {"id": str(driver["id"]), "host": str(driver["host"]), "pid": int(driver["pid"]), "beat": driver["beat"]}
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):  # no file, or a file without meaning
        return None


def _write(ledger: Ledger, driver: dict[str, Any]) -> None:
    ledger.output.write(_FILE, json.dumps(driver).encode(), f"{ledger.temporary}/driver.json")
