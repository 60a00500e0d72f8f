"""Replaces entities in texts by their offsets. It searches for nothing, so it replaces nothing by mistake."""

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
KEYED = ("hash",)  # the styles that need a key
KEY_VARIABLE = "SPANLAKE_REDACTION_KEY"
MASK = "[REDACTED]"

_KEY_BYTES = 16  # the least: shorter keys can be found by trying all of them
_DIGITS = 16  # hexadecimal, of a hash: among a billion names, the chance of two equal hashes is one in forty
_KEY_CHECK = b"spanlake redaction key"


@dataclass(frozen=True)
class Redaction:
    """How entities are replaced: by `[LABEL]`, by `[LABEL:hash]`, or by a fixed mask.

    A hash is keyed (HMAC-SHA256) over label and surface form. With the same key, the same name always has the same
    hash. Without the key, nobody can find a name by trying.

    With `vault`, what was replaced is sealed beside the redacted text, and the key brings it back. The style hash and a
    vault need a `key`, which is never shown.
    """

    style: str
    key: bytes | None = field(default=None, repr=False)
    vault: bool = False

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"--redact is {self.style!r}: give one of {', '.join(STYLES)}.")
        if (self.key is not None) != (self.style in KEYED or self.vault):
            raise ValueError("the style hash and a vault need a key, and the other styles take no key")

    def as_json(self) -> dict[str, Any]:
        """Returns everything that determines the result. A digest stands for the key, to recognize another key."""
        vault = {"vault": True} if self.vault else {}
        return {"style": self.style, "key_check": self.key and key_check(self.key), **vault}

    def text(self, text: str, entities: Iterable[Entity]) -> str:
        """Returns the text with each entity replaced.

        One replacement covers all entities that overlap. Its label is that of the longest; among equally long ones, of
        the one with the highest score, then of the first label by name.
        """
        redacted, _ = self._edited(text, entities)
        return redacted

    def sealed_text(self, text: str, entities: Iterable[Entity], place: str) -> tuple[str, bytes]:
        """Returns the text with each entity replaced, and what was replaced, sealed for a text at this place.

        Raises UserError if a library is missing.
        """
        from spanlake.redaction.vault import Edit, seal

        if self.key is None:
            raise ValueError("a vault needs a key")
        redacted, edits = self._edited(text, entities)
        return redacted, seal(self.key, redacted, [Edit(*edit) for edit in edits], place)

    def _edited(self, text: str, entities: Iterable[Entity]) -> tuple[str, list[tuple[int, int, str]]]:
        """Returns the redacted text, and of each replacement: its start and end in it, and the original."""
        parts: list[str] = []
        edits: list[tuple[int, int, str]] = []
        position = length = 0
        for start, end, label in covered(entities):
            replacement = self._replacement(text[start:end], label)
            parts += (text[position:start], replacement)
            length += start - position + len(replacement)
            edits.append((length - len(replacement), length, text[start:end]))
            position = end
        return "".join([*parts, text[position:]]), edits

    def replacement(self, entity: Entity) -> str:
        """Returns the replacement of a single entity."""
        return self._replacement(entity.text, entity.label)

    def _replacement(self, surface: str, label: str) -> str:
        if self.style == "mask":
            return MASK
        name = label.upper()
        if self.key is None or self.style == "label":
            return f"[{name}]"
        content = f"{label}\0{_normalised(surface)}".encode(errors="surrogatepass")  # JSON can hold half a pair
        return f"[{name}:{hmac.new(self.key, content, sha256).hexdigest()[:_DIGITS]}]"


def covered(entities: Iterable[Entity]) -> list[tuple[int, int, str]]:
    """Returns the unions of overlapping entities in order: start, end (exclusive), and label of the longest in each."""
    unions: list[tuple[int, int, Entity]] = []
    for entity in sorted(entities, key=lambda entity: (entity.start, -entity.end)):
        if unions and entity.start < unions[-1][1]:
            start, end, longest = unions[-1]
            unions[-1] = (start, max(end, entity.end), min(longest, entity, key=_precedence))
        else:
            unions.append((entity.start, entity.end, entity))
    return [(start, end, entity.label) for start, end, entity in unions]


def key_check(key: bytes) -> str:
    """Returns a digest of a key, by which another key is recognized."""
    return hmac.new(key, _KEY_CHECK, sha256).hexdigest()[:_DIGITS]


def _precedence(entity: Entity) -> tuple[int, float, str]:
    return entity.start - entity.end, -entity.score, entity.label


def _normalised(surface: str) -> str:
    """Returns one form for all spellings of a name that differ in case, Unicode composition or line breaks."""
    return " ".join(unicodedata.normalize("NFKC", surface).casefold().split())


def read_key(path: str | None) -> bytes | None:
    """Returns the key of a redaction: the content of a file, or of the environment variable, stripped.

    Returns None where there is neither. Raises UserError if the file cannot be read, or if the key is too short. No
    message contains any part of the key.
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
            return None
    if len(key) < _KEY_BYTES:
        raise UserError(
            f"The redaction key of {origin} has {len(key)} bytes and needs {_KEY_BYTES} or more: "
            "make one with `openssl rand -hex 32`."
        )
    return key
