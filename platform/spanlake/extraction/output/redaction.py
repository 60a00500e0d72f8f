"""Texts with their entities replaced, by offset: nothing is searched for, so nothing is replaced by mistake."""

import hmac
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from spanlake.decoding import Entity
from spanlake.errors import UserError, one_line

STYLES = ("label", "hash", "mask")
KEY_VARIABLE = "SPANLAKE_REDACTION_KEY"
MASK = "[REDACTED]"

_KEY_BYTES = 16  # the fewest: what a shorter key hides can be found by trying keys
_DIGITS = 16  # hexadecimal, of a hash: among a billion names, two are equal by chance once in forty times
_KEY_CHECK = b"spanlake redaction key"


@dataclass(frozen=True)
class Redaction:
    """How entities are replaced: by `[LABEL]`, by `[LABEL:hash]`, or by a fixed mask.

    A hash is keyed (HMAC-SHA256) over label and surface form: the same name gets the same hash wherever the key is the
    same, and nobody without the key can find out a name by trying. `key` is set for hashes alone, and never shown.
    """

    style: str
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"--redact is {self.style!r}: give one of {', '.join(STYLES)}.")
        if (self.key is not None) != (self.style == "hash"):
            raise ValueError("a key belongs to the style hash, and to no other")

    def as_json(self) -> dict[str, Any]:
        """What decides the result; of the key, a digest that tells it from others."""
        check = self.key and hmac.new(self.key, _KEY_CHECK, sha256).hexdigest()[:_DIGITS]
        return {"style": self.style, "key_check": check}

    def text(self, text: str, entities: Iterable[Entity]) -> str:
        """The text with each entity replaced. Of entities that overlap, all that they cover is replaced as one,

        under the label of the longest (of equals the likeliest, then the first by name).
        """
        parts: list[str] = []
        position = 0
        for start, end, label in covered(entities):
            parts += (text[position:start], self._replacement(text[start:end], label))
            position = end
        return "".join([*parts, text[position:]])

    def replacement(self, entity: Entity) -> str:
        """What stands in the place of an entity by itself."""
        return self._replacement(entity.text, entity.label)

    def _replacement(self, surface: str, label: str) -> str:
        if self.style == "mask":
            return MASK
        name = label.upper()
        if self.key is None:
            return f"[{name}]"
        content = f"{label}\0{_normalised(surface)}".encode()
        return f"[{name}:{hmac.new(self.key, content, sha256).hexdigest()[:_DIGITS]}]"


def covered(entities: Iterable[Entity]) -> list[tuple[int, int, str]]:
    """The unions of overlapping entities, in order: start, end (exclusive), and the label of the longest in each."""
    unions: list[tuple[int, int, Entity]] = []
    for entity in sorted(entities, key=lambda entity: (entity.start, -entity.end)):
        if unions and entity.start < unions[-1][1]:
            start, end, longest = unions[-1]
            unions[-1] = (start, max(end, entity.end), min(longest, entity, key=_precedence))
        else:
            unions.append((entity.start, entity.end, entity))
    return [(start, end, entity.label) for start, end, entity in unions]


def _precedence(entity: Entity) -> tuple[int, float, str]:
    return entity.start - entity.end, -entity.score, entity.label


def _normalised(surface: str) -> str:
    """One form for a name however it is cased, composed or broken over lines."""
    return " ".join(unicodedata.normalize("NFKC", surface).casefold().split())


def read_key(path: str | None) -> bytes:
    """The key of hashes: the content of a file, without whitespace around it, or the environment's variable.

    Raises: UserError where there is none, or a short one. No message holds any of it.
    """
    if path is not None:
        try:
            with open(path, "rb") as file:
                key, origin = file.read().strip(), f"--redact-key-file {path}"
        except OSError as error:
            raise UserError(f"--redact-key-file {path} cannot be read ({one_line(error)}).") from error
    else:
        key, origin = os.environ.get(KEY_VARIABLE, "").strip().encode(errors="surrogateescape"), KEY_VARIABLE
        if not key:
            raise UserError(f"--redact hash needs a key: set {KEY_VARIABLE}, or give --redact-key-file FILE.")
    if len(key) < _KEY_BYTES:
        raise UserError(
            f"The redaction key of {origin} has {len(key)} bytes and needs {_KEY_BYTES} or more: "
            "make one with `openssl rand -hex 32`."
        )
    return key
