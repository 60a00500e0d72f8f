"""API keys: who may call, and how often.

A key is 32 random bytes, so its SHA-256 gives nothing away and needs no salt; only that hash is stored.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import yaml

from spanlake.errors import UserError, one_line, shown

PREFIX = "spk_"


@dataclass(frozen=True)
class Key:
    name: str
    sha256: str  # of the secret, in hex
    requests_per_minute: int | None  # None: as many as the server answers


def new_key(name: str, requests_per_minute: int | None) -> tuple[str, Key]:
    """A secret, to be handed over once, and the key that is stored for it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name, _hash(secret), requests_per_minute)


def read_keys(path: str) -> list[Key]:
    """A YAML list of `{name, sha256, requests_per_minute?}`.

    Raises: UserError naming the entry that is not one, or a name or hash that stands twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            entries = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The keys file {path} cannot be read ({one_line(error)}).") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"The keys file {path} holds no list of keys; `spanlake key NAME` prints an entry.")
    keys = [_key(entry, number, path) for number, entry in enumerate(entries, 1)]
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"The keys file {path} has the {field} {twice[0]} twice; remove one entry.")
    return keys


def _key(entry: Any, number: int, path: str) -> Key:
    def refuse(reason: str) -> UserError:
        return UserError(f"Entry {number} of the keys file {path} {reason}; `spanlake key NAME` prints an entry.")

    if not isinstance(entry, dict):
        raise refuse("is no mapping")
    if unknown := set(entry) - {"name", "sha256", "requests_per_minute"}:
        raise refuse(f"has the unknown field {sorted(map(str, unknown))[0]}")
    name, digest, rate = entry.get("name"), entry.get("sha256"), entry.get("requests_per_minute")
    if not isinstance(name, str) or not name:
        raise refuse("has no name")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise refuse("has no sha256 of 64 hexadecimal digits")
    if rate is not None and (not isinstance(rate, int) or isinstance(rate, bool) or rate < 1):
        raise refuse(f"has requests_per_minute {shown(rate)}, which is no whole number from 1 up")
    return Key(name, digest, rate)


class Gate:
    """Recognises keys, and counts what each may still ask of this process: a bucket that refills steadily."""

    def __init__(self, keys: list[Key], clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._buckets = {key.name: (float(key.requests_per_minute or 0), clock()) for key in keys}

    def recognise(self, secret: str) -> Key | None:
        """The key of a secret. Every stored hash is compared, in constant time."""
        digest = _hash(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def wait(self, key: Key) -> float:
        """Seconds until the key may ask again; 0 where it may now, which counts as a request."""
        if key.requests_per_minute is None:
            return 0.0
        left, then = self._buckets[key.name]
        now = self._clock()
        left = min(float(key.requests_per_minute), left + (now - then) * key.requests_per_minute / 60)
        allowed = left >= 1
        self._buckets[key.name] = (left - allowed, now)
        return 0.0 if allowed else (1 - left) * 60 / key.requests_per_minute


def _hash(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
