"""What can go wrong and is the caller's to know.

Each message is one sentence: what was wrong, the value, what is allowed, what to do.
"""


class SpanlakeError(Exception):
    """Base of every error that Spanlake raises on purpose; the command line prints its message without a traceback."""

    exit_code = 1


class UserError(SpanlakeError, ValueError):
    """The call was wrong: an argument, a file or a setting that the caller can correct."""

    exit_code = 2


class PackageError(UserError):
    """A model package that is missing, incomplete, altered, or of a kind that cannot be read."""


class ShortfallError(SpanlakeError):
    """The call was right, but the work could not be finished."""


def shown(value: object) -> str:
    """A value as a message names it: on one line, and cut short where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:80]}…{text[-10:]}"


def one_line(error: BaseException) -> str:
    """What an exception says, as the end of a sentence: its first line, at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:300]


def no_cluster(address: str, error: BaseException) -> UserError:
    """Where the Ray cluster that RAY_ADDRESS names cannot be reached. Ray does not say that it asked for a token."""
    return UserError(
        f"No Ray cluster answers at RAY_ADDRESS={address} ({one_line(error)}): start one there, unset it, "
        "or set RAY_AUTH_MODE=token where the cluster asks for one, as `ray start` makes it do."
    )


def described(error: BaseException) -> str:
    """Returns an exception as a part of a sentence, with its type unless it is one of Spanlake's own."""
    return one_line(error) if isinstance(error, SpanlakeError) else f"{type(error).__name__}: {one_line(error)}"
