"""Reads the arguments of benchmarks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spanlake.errors import SpanlakeError
from spanlake.options import positive


def numbers(text: str) -> list[int]:
    """Reads whole numbers from 1 up with commas between them, as the `type` of an option."""
    return [positive(part) for part in text.split(",")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with the sentence of an error that its user can mend."""
    try:
        yield
    except SpanlakeError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
