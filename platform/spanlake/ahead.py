"""Work that another thread does ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def read_ahead(items: Iterator[_T], count: int, thread: str) -> Iterator[_T]:
    """Yields the items, none of which is None. Another thread, called `thread`, keeps the next `count` items ready."""
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread)
    try:
        ready = deque(reader.submit(next, items, None) for _ in range(count))
        while (item := ready.popleft().result()) is not None:
            ready.append(reader.submit(next, items, None))
            yield item
    finally:
        reader.shutdown(cancel_futures=True)
