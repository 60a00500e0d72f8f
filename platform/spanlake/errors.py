"""The errors that Spanlake raises for its callers.

Each message is one sentence: what was wrong, the value, what is allowed, what to do.
"""

import yaml


class SpanlakeError(Exception):
    """The base of every error that Spanlake raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class UserError(SpanlakeError, ValueError):
    """The call was wrong: the caller can correct an argument, a file or a setting."""

    exit_code = 2


class PackageError(UserError):
    """A model package is missing, incomplete or altered, or this version cannot read it."""


class ShortfallError(SpanlakeError):
    """The call was right, but the work could not be finished."""


def shown(value: object) -> str:
    """Returns a value as messages show it: on one line, and shortened where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:80]}…{text[-10:]}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, at most 300 characters, without its full stop.

    That of a YAML file says what is wrong and in which line; the first line of its message says neither.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"[:300]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:300]


def no_cluster(address: str, error: BaseException) -> UserError:
    """Returns the error for a Ray cluster that does not answer at RAY_ADDRESS.

    The message mentions tokens, because Ray does not say when a token was missing.
    """
    return UserError(
        f"No Ray cluster answers at RAY_ADDRESS={address} ({one_line(error)}): start a cluster there, "
        "unset RAY_ADDRESS, or set RAY_AUTH_MODE=token if the cluster asks for a token, as `ray start` makes it do."
    )


def described(error: BaseException) -> str:
    """Returns an exception as a part of a sentence, with its type unless it is one of Spanlake's own."""
    return one_line(error) if isinstance(error, SpanlakeError) else f"{type(error).__name__}: {one_line(error)}"
