"""What was found in a text, in the form that a request asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from starlette.concurrency import run_in_threadpool

from spanlake.decoding import Entity
from spanlake.redaction import Redaction
from spanlake.serving.schema import Offsets

_SHORT = 20_000  # characters of a text, or entities in it, that take a millisecond or two
_ONE_UNIT = "\uffff"  # the last code point that is one code unit in UTF-16


@dataclass(frozen=True)
class Found:
    entities: list[Entity]
    redacted: str | None = None  # the text with its entities replaced, where the request asks for it


@dataclass(frozen=True)
class Form:
    """How a request wants its answer."""

    offsets: Offsets
    redaction: Redaction | None

    async def found(self, text: str, entities: list[Entity]) -> Found:
        """Returns what was found in this form. The work on a long text runs on another thread."""
        if self.offsets == "code_points" and self.redaction is None:
            return Found(entities)
        await asyncio.sleep(0)  # other requests are served between two texts
        if len(text) + len(entities) <= _SHORT:
            return self._found(text, entities)
        return await run_in_threadpool(self._found, text, entities)

    def _found(self, text: str, entities: list[Entity]) -> Found:
        redacted = self.redaction.text(text, entities) if self.redaction else None
        return Found(in_utf16(text, entities) if self.offsets == "utf16" else entities, redacted)


def in_utf16(text: str, entities: Sequence[Entity]) -> list[Entity]:
    """Returns the entities with offsets in UTF-16 code units in the place of code points."""
    if text.isascii() or max(text) <= _ONE_UNIT:
        return list(entities)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    pairs = np.flatnonzero(codes > ord(_ONE_UNIT))  # positions of the code points that are two code units
    offsets = np.array([(entity.start, entity.end) for entity in entities], dtype=np.int64).reshape(-1, 2)
    shifted = (offsets + np.searchsorted(pairs, offsets)).tolist()
    return [replace(entity, start=start, end=end) for entity, (start, end) in zip(entities, shifted, strict=True)]
