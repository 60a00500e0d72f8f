"""Replaces entities in texts by their offsets. It searches for nothing, so it replaces nothing by mistake."""

import hmac
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal, get_args

from spanlake.decoding import Entity
from spanlake.errors import UserError, one_line
from spanlake.redaction.names import normalised

Style = Literal["label", "hash", "mask", "surrogate"]
STYLES: tuple[Style, ...] = get_args(Style)
KEYED = ("hash", "surrogate")  # the styles that need a key
KEY_VARIABLE = "SPANLAKE_REDACTION_KEY"
MASK = "[REDACTED]"

_KEY_BYTES = 16  # the least: shorter keys can be found by trying all of them
_DIGITS = 16  # hexadecimal, of a hash: among a billion names, the chance of two equal hashes is one in forty
_KEY_CHECK = b"spanlake redaction key"


@dataclass(frozen=True)
class Redaction:
    """How entities are replaced: by `[LABEL]`, by `[LABEL:hash]`, by a fixed mask, or by made-up values.

    A hash is keyed (HMAC-SHA256) over label and surface form. With the same key, the same name always has the same
    hash. Without the key, nobody can find a name by trying.

    A made-up value (surrogate) depends on the key, the label and the name too. In one document, the same name always
    has the same value, and different names have different values. `locale` is that of the values.

    With `vault`, what was replaced is sealed beside the redacted text, and the key brings it back. Hashes,
    surrogates and vaults need a `key`, which is never shown.
    """

    style: str
    key: bytes | None = field(default=None, repr=False)
    vault: bool = False
    locale: str = "en_US"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"--redact is {self.style!r}: give one of {', '.join(STYLES)}.")
        if (self.key is not None) != (self.style in KEYED or self.vault):
            raise ValueError("hashes, surrogates and vaults need a key, and the other styles take no key")
        if self.style == "surrogate":
            from spanlake.redaction.surrogates import check_locale

            check_locale(self.locale)
        if self.vault:
            import spanlake.redaction.vault  # noqa: F401  raises UserError if its library is missing

    def as_json(self) -> dict[str, Any]:
        """Returns everything that determines the result. A digest stands for the key, to recognize another key."""
        vault = {"vault": True} if self.vault else {}
        return {"style": self.style, "key_check": self.key and key_check(self.key), **vault, **self._surrogates_json()}

    def _surrogates_json(self) -> dict[str, Any]:
        if self.style != "surrogate":
            return {}
        from spanlake.redaction.surrogates import FAKER

        return {"surrogates": {"locale": self.locale, "faker": FAKER}}

    def text(self, text: str, entities: Iterable[Entity], document: Iterable[Entity] | None = None) -> str:
        """Returns the text with each entity replaced.

        One replacement covers all entities that overlap. Its label is that of the longest; among equally long ones, of
        the one with the highest score, then of the first label by name.

        `document` has the entities of all texts that belong together, so that their surrogates agree; the default is
        `entities`.
        """
        redacted, _ = self._edited(text, list(entities), document)
        return redacted

    def sealed_text(
        self, text: str, entities: Iterable[Entity], place: str, document: Iterable[Entity] | None = None
    ) -> tuple[str, bytes]:
        """Returns the text with each entity replaced, and what was replaced, sealed for a text at this place.

        `document` is that of `text`.
        """
        from spanlake.redaction.vault import Edit, seal

        if self.key is None:
            raise ValueError("a vault needs a key")
        redacted, edits = self._edited(text, list(entities), document)
        return redacted, seal(self.key, redacted, [Edit(*edit) for edit in edits], place)

    def _edited(
        self, text: str, entities: Sequence[Entity], document: Iterable[Entity] | None
    ) -> tuple[str, list[tuple[int, int, str]]]:
        """Returns the redacted text, and of each replacement: its start and end in it, and the original."""
        replacement_of = self._replacer(entities if document is None else document)
        parts: list[str] = []
        edits: list[tuple[int, int, str]] = []
        position = length = 0
        for start, end, entity in covered(entities):
            surface = entity.text if self.style == "surrogate" else text[start:end]
            replacement = replacement_of(surface, entity.label)
            parts += (text[position:start], replacement)
            length += start - position + len(replacement)
            edits.append((length - len(replacement), length, text[start:end]))
            position = end
        return "".join([*parts, text[position:]]), edits

    def hidden(self, entities: Sequence[Entity]) -> list[Entity]:
        """Returns the entities of a document, with the replacement of each as its text."""
        replacement_of = self._replacer(entities)
        return [replace(entity, text=replacement_of(entity.text, entity.label)) for entity in entities]

    def _replacer(self, document: Iterable[Entity]) -> Callable[[str, str], str]:
        """Returns the function from the surface and the label of an entity in a document to its replacement."""
        if self.style != "surrogate" or self.key is None:
            return self._replacement
        from spanlake.redaction.surrogates import surrogates

        names: dict[tuple[str, str], str] = {}
        for entity in sorted(document, key=lambda entity: entity.text, reverse=True):  # the first spelling counts
            names[entity.label, normalised(entity.text)] = entity.text
        values = surrogates(names, self.key, self.locale)
        return lambda surface, label: values[label, normalised(surface)]

    def _replacement(self, surface: str, label: str) -> str:
        if self.style == "mask":
            return MASK
        name = label.upper()
        if self.key is None or self.style == "label":
            return f"[{name}]"
        content = f"{label}\0{normalised(surface)}".encode(errors="surrogatepass")  # JSON can hold half a pair
        return f"[{name}:{hmac.new(self.key, content, sha256).hexdigest()[:_DIGITS]}]"


def covered(entities: Iterable[Entity]) -> list[tuple[int, int, Entity]]:
    """Returns the unions of overlapping entities in order: start, end (exclusive), and the longest entity in each."""
    unions: list[tuple[int, int, Entity]] = []
    for entity in sorted(entities, key=lambda entity: (entity.start, -entity.end)):
        if unions and entity.start < unions[-1][1]:
            start, end, longest = unions[-1]
            unions[-1] = (start, max(end, entity.end), min(longest, entity, key=_precedence))
        else:
            unions.append((entity.start, entity.end, entity))
    return unions


def key_check(key: bytes) -> str:
    """Returns a digest of a key, by which another key is recognized."""
    return hmac.new(key, _KEY_CHECK, sha256).hexdigest()[:_DIGITS]


def _precedence(entity: Entity) -> tuple[int, float, str]:
    return entity.start - entity.end, -entity.score, entity.label


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
