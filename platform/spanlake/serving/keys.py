"""API keys: stored as SHA-256, compared in constant time, each with a rate of its own. A change of their file takes
effect within a second, so keys are replaced without a restart.

A key is 256 random bits. Nobody can guess such a value from its hash, so a salt and a slow hash, which protect secrets
that people choose, would only cost time on every request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from spanlake.errors import UserError, one_line, shown
from spanlake.serving.errors import ApiError
from spanlake.strict_yaml import load_yaml

_log = logging.getLogger(__name__)
_BURST_SECONDS = 10  # worth of a key's requests may come at once
_LOOK_SECONDS = 1.0  # between looks at the file


class Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    requests_per_minute: float | None = Field(default=None, gt=0)


_FILE: TypeAdapter[dict[str, Key]] = TypeAdapter(dict[str, Key])


class Keys:
    """The keys that are accepted. Belongs to one event loop."""

    def __init__(
        self, keys: dict[str, Key], clock: Callable[[], float] = time.monotonic, file: Path | None = None
    ) -> None:
        """`file`: where the keys come from. It is read again when it changes."""
        self._keys = keys
        self._clock = clock
        self._file = file
        self._version = _version(file)
        self._looked = clock()
        self._used: dict[str, tuple[float, float]] = {}  # by name: requests left, and the time of that count

    def admit(self, presented: str | None) -> str:
        """Returns the key's name. Raises: ApiError 401 for no key or an unknown one, 429 if it is used too often."""
        self._follow_file()
        digest = _digest(presented or "")
        names = [name for name, key in self._keys.items() if hmac.compare_digest(key.sha256, digest)]
        if not presented or not names:
            wrong = "The API key is unknown" if presented else "This server needs an API key"
            raise ApiError(401, "unauthorized", f"{wrong}; send one as `Authorization: Bearer KEY`.")
        rate = self._keys[names[0]].requests_per_minute
        if rate is not None:
            self._take(names[0], rate / 60)
        return names[0]

    def _follow_file(self) -> None:
        """Reads the file again if it has changed. The keys stay as they are while it cannot be read."""
        if self._file is None or self._clock() - self._looked < _LOOK_SECONDS:
            return
        self._looked = self._clock()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _read(self._file)
        except UserError as error:
            _log.error("the keys stay as they are: %s", error)
            return
        _log.info("%s was read again: %d keys", self._file, len(self._keys))

    def _take(self, name: str, per_second: float) -> None:
        burst = max(1.0, per_second * _BURST_SECONDS)
        left, since = self._used.get(name, (burst, self._clock()))
        now = self._clock()
        left = min(burst, left + (now - since) * per_second)
        if left < 1:
            self._used[name] = (left, now)
            raise ApiError(
                429,
                "rate_limited",
                f"This API key may send {per_second * 60:g} requests a minute; wait and try again.",
                retry_after=(1 - left) / per_second,
            )
        self._used[name] = (left - 1, now)


def read_keys(path: Path) -> Keys:
    """Reads `name: {sha256: …, requests_per_minute: …}`. Raises: UserError."""
    return Keys(_read(path), file=path)


def add_key(path: Path, name: str, requests_per_minute: float | None) -> str:
    """Makes a key, adds its hash to the file, and returns the key. The key itself is not stored.

    Raises: UserError for a name that the file has, or a file that cannot be read or written.
    """
    content = _content(path) if path.exists() else ""
    if name in _parsed(path, content):
        raise UserError(f"{path} already has a key of the name {name!r}; remove it there, or choose another name.")
    value = f"sl_{secrets.token_urlsafe(32)}"
    entry: dict[str, Any] = {"sha256": _digest(value)}
    if requests_per_minute is not None:
        if not (requests_per_minute > 0 and math.isfinite(requests_per_minute)):
            raise UserError(f"The rate is {requests_per_minute} requests a minute; it must be above 0.")
        entry["requests_per_minute"] = requests_per_minute
    added = ("" if content.endswith("\n") or not content else "\n") + yaml.safe_dump({name: entry})
    try:
        _parsed(path, content + added)
    except UserError as error:
        raise UserError(
            f"A key cannot be added at the end of {path}: write one key under the other in it, without braces around "
            "them."
        ) from error
    try:
        path.touch(mode=0o600)
        with open(path, "a", encoding="utf-8") as file:
            file.write(added)
    except OSError as error:
        raise UserError(f"The key file {path} cannot be written ({one_line(error)}).") from error
    return value


def _read(path: Path) -> dict[str, Key]:
    return _parsed(path, _content(path))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The key file {path} cannot be read ({one_line(error)}).") from error


def _parsed(path: Path, content: str) -> dict[str, Key]:
    try:
        values = load_yaml(content)
    except yaml.YAMLError as error:
        raise UserError(f"The key file {path} cannot be read ({one_line(error)}).") from error
    try:
        return _FILE.validate_python(values if values is not None else {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"In the key file {path}, {where} is {shown(first['input'])}: {first['msg']}.") from error


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """Returns what changes with the content of a file; None if there is no file."""
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
