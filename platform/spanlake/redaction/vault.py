"""Seals what a redaction has replaced, so that the key can bring it back.

A sealed value is encrypted and authenticated (AES-SIV, RFC 5297). It belongs to one redacted text: with another text or
another key, it cannot be opened.
"""

import hmac
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from spanlake.errors import UserError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as error:
    raise UserError("A vault needs cryptography, which is not installed: pip install 'spanlake[redact]'.") from error

_NONCE_BYTES = 16
_PURPOSE = b"spanlake vault 1"  # so that the key has another use here than in hashes


class Edit(NamedTuple):
    """A replacement: the characters start..end (exclusive) of the redacted text were `original`."""

    start: int
    end: int
    original: str


def seal(key: bytes, redacted: str, edits: Sequence[Edit], place: str) -> bytes:
    """Returns the edits of a redacted text, sealed.

    `place` says where the text is, such as its file and row. Equal texts at different places have different seals, and
    the same text at the same place always has the same.
    """
    secret = _key(key)
    nonce = hmac.new(secret, f"{place}\0{redacted}".encode(errors="surrogatepass"), sha256).digest()[:_NONCE_BYTES]
    content = json.dumps(edits).encode()
    return nonce + AESSIV(secret).encrypt(content, [redacted.encode(errors="surrogatepass"), nonce])


def unseal(key: bytes, redacted: str, sealed: bytes) -> str:
    """Returns the text before its redaction.

    Raises ValueError if the value was not sealed with this key, or not for this redacted text.
    """
    nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        opened = AESSIV(_key(key)).decrypt(content, [redacted.encode(errors="surrogatepass"), nonce])
    except InvalidTag as error:
        raise ValueError("the key is another one, or the redacted text or its vault was changed") from error
    parts: list[str] = []
    position = 0
    for start, end, original in json.loads(opened):
        parts += (redacted[position:start], original)
        position = end
    return "".join([*parts, redacted[position:]])


def _key(key: bytes) -> bytes:
    return HKDF(SHA256(), length=64, salt=None, info=_PURPOSE).derive(key)
