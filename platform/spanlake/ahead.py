"""Work that other threads do ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_WAITING = 32  # items for each thread, so that memory does not grow with their number


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


def map_ahead(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """Yields the results of a function for the items, in their order. Threads work ahead, on few items at a time."""
    pool = ThreadPoolExecutor(threads)
    results: deque[Future[_R]] = deque()
    try:
        for item in items:
            results.append(pool.submit(function, item))
            if len(results) > threads * _WAITING:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
