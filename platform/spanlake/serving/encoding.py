"""Writes answers as JSON, in slices: the event loop serves other requests between two slices.

The JSON is ASCII, because a text may contain half of a surrogate pair, which UTF-8 cannot express.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from spanlake.decoding import Entity
from spanlake.serving.errors import ApiError
from spanlake.serving.service import Answer

_SLICE = 1000  # entities


async def slices(entities: Sequence[Entity]) -> AsyncIterator[Sequence[Entity]]:
    """Yields the entities in parts. Other requests are served between the parts."""
    for first in range(0, len(entities), _SLICE):
        if first:
            await asyncio.sleep(0)
        yield entities[first : first + _SLICE]


async def entities_json(entities: Sequence[Entity]) -> str:
    parts = [json.dumps(_dicts(part))[1:-1] async for part in slices(entities)]
    return f"[{', '.join(parts)}]"


async def answer_json(answer: Answer) -> str:
    """Returns the answer as `ExtractResponse` describes it."""
    rest = _rest(answer)
    if answer.entities <= _SLICE:
        found = [None if isinstance(result, ApiError) else _dicts(result.entities) for result in answer.results]
        return json.dumps({"model": answer.model.model_dump(), "results": found, **rest})
    results = []
    written = 0
    for result in answer.results:
        results.append("null" if isinstance(result, ApiError) else await entities_json(result.entities))
        written += 1 if isinstance(result, ApiError) else len(result.entities)
        if written > _SLICE:
            await asyncio.sleep(0)
            written = 0
    last = f", {json.dumps(rest)[1:-1]}" if rest else ""
    return f'{{"model": {json.dumps(answer.model.model_dump())}, "results": [{", ".join(results)}]{last}}}'


def _rest(answer: Answer) -> dict[str, Any]:
    """Returns the fields that only some answers have."""
    rest: dict[str, Any] = {}
    if answer.is_redacted:
        rest["redacted"] = [None if isinstance(result, ApiError) else result.redacted for result in answer.results]
    if errors := [
        {"index": index, "type": result.kind, "message": result.message}
        for index, result in enumerate(answer.results)
        if isinstance(result, ApiError)
    ]:
        rest["errors"] = errors
    return rest


def _dicts(entities: Sequence[Entity]) -> list[dict[str, Any]]:
    return [entity.to_dict() for entity in entities]
