"""Regular expressions that cannot hang: RE2 searches in time that is linear in the text."""

import time
from collections.abc import Iterator

import re2

from spanlake.errors import UserError, shown

# A search is linear, but one that looks far ahead for every short match is not, as in `x[^y]*y|x`.
_SECONDS = 10.0  # for one pattern in one text

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # RE2 would write them to stderr, besides raising them


def compiled(pattern: str) -> re2._Regexp:
    """Returns the compiled pattern.

    Raises ValueError, with the reason, if RE2 cannot read it, and if it matches an empty text.
    """
    try:
        found = re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        reason = error.args[0]
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error
    if found.fullmatch("") is not None:
        raise ValueError("it matches an empty text")
    return found


def spans(pattern: re2._Regexp, text: str) -> Iterator[tuple[int, int]]:
    """Yields the start and end (exclusive) of each match that is not empty, in code points. Matches do not overlap.

    Raises UserError if the search takes more than ten seconds.
    """
    deadline = time.monotonic() + _SECONDS
    for match in pattern.finditer(text):
        if match.end() > match.start():
            yield match.span()
        if time.monotonic() > deadline:
            raise UserError(
                f"The pattern {shown(pattern.pattern)} takes more than {_SECONDS:g} seconds on a text of {len(text)} "
                "characters: write it so that it need not look far ahead."
            )
