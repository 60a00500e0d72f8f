"""Inflates a request's body that comes as gzip. Never more than a piece of it is inflated before it is counted."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from spanlake.serving.errors import ApiError, malformed, too_large

_PIECE = 64 << 10  # bytes, which take less than a millisecond
_GZIP = 16 + zlib.MAX_WBITS


def over(limit: int) -> ApiError:
    return too_large(f"The body has more than {limit} bytes; that is the most allowed.")


async def inflated(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Yields the content of a gzip file of one or more members. Other requests are served between the pieces.

    Raises: ApiError 413 as soon as the content has more than `limit` bytes, 400 for what is not whole gzip.
    """
    size = 0
    member = zlib.decompressobj(_GZIP)
    async for chunk in chunks:
        while chunk:
            if member.eof:
                member = zlib.decompressobj(_GZIP)
            try:
                piece = member.decompress(chunk, _PIECE)
            except zlib.error:
                raise malformed("The body is not the gzip that its content encoding says.") from None
            chunk = member.unused_data if member.eof else member.unconsumed_tail
            size += len(piece)
            if size > limit:
                raise over(limit)
            yield piece
            await asyncio.sleep(0)
    if not member.eof:
        raise malformed("The body is gzip that ends too early.")
