"""Reads the arguments of benchmarks."""

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spanlake.errors import SpanlakeError
from spanlake.options import positive


def numbers(text: str) -> list[int]:
    """Reads whole numbers from 1 up with commas between them, as the `type` of an option."""
    return [positive(part) for part in text.split(",")]


def above_zero(text: str) -> float:
    """Reads a number above 0, as the `type` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with the sentence of an error that its user can mend."""
    try:
        yield
    except SpanlakeError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
