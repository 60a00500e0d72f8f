"""Work on many items at a time, in one event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


async def in_parallel(work: Callable[[_T], Awaitable[_R]], items: Sequence[_T], workers: int) -> list[_R]:
    """Returns the results in the order of the items. The first error stops all of the work."""
    results: list[_R | None] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for number, item in waiting:
            results[number] = await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(workers, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results  # type: ignore[return-value] # each item has its result
