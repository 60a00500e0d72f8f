"""The models of a server, by name. The default stays in memory; others are loaded on request and may be evicted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from spanlake.errors import UserError, one_line
from spanlake.inference.extractor import Extractor
from spanlake.inference.planning import Row
from spanlake.inference.settings import Settings
from spanlake.modeling.weights import share_weights
from spanlake.package import Package
from spanlake.serving.config import ServeConfig
from spanlake.serving.errors import ApiError, unavailable
from spanlake.serving.health import Health
from spanlake.serving.queue import Queue, Rate
from spanlake.serving.runner import Observer, Runner

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0  # an evicted model has no work left
_WARM_LABELS = Settings.make(["person", "organization", "location", "date", "product"], 0.99)


@dataclass(frozen=True)
class Served:
    name: str
    extractor: Extractor
    runner: Runner
    health: Health

    async def close(self, seconds: float) -> None:
        """Answers queued texts for at most `seconds`, then frees the model, unless a pass is still running."""
        if await self.runner.close(seconds):
            await asyncio.to_thread(self.extractor.close)


class Models:
    """Belongs to one event loop."""

    def __init__(self, config: ServeConfig, observe: Observer) -> None:
        self._config = config
        self._observe = observe
        self._loaded: OrderedDict[str, Served] = OrderedDict()  # the least recently used first; without the default
        self._loading: dict[str, asyncio.Task[Served]] = {}
        self._users: Counter[str] = Counter()  # requests in work, by name; a model with requests is not evicted
        self._places = config.loaded_models  # that are free
        self._room = asyncio.Condition()
        self.default: Served

    async def load_default(self) -> None:
        """Raises: PackageError, UserError as `Extractor.load` does."""
        self.default = await self._load(None)

    @property
    def names(self) -> list[str]:
        """Returns all names that a request may use, the default first."""
        return [self.default.name, *(name for name in self._config.models if name != self.default.name)]

    @property
    def loaded(self) -> list[Served]:
        return [self.default, *self._loaded.values()]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Served]:
        """Gives the model to the block. Raises: ApiError 404 for an unknown name, 503 for one that does not load."""
        model = self.find(name)
        if model is self.default:  # it is never evicted
            yield model
            return
        name = name or self.default.name
        self._users[name] += 1  # from here on it is not evicted, even before it is loaded
        try:
            yield model or await self._loaded_soon(name)
        finally:
            self._users[name] -= 1
            async with self._room:
                self._room.notify_all()

    def find(self, name: str | None) -> Served | None:
        """Returns the model, or None if it is not in memory. Raises: ApiError 404 for an unknown name."""
        if name is None or name == self.default.name:
            return self.default
        if name not in self._config.models:
            names = ", ".join(self.names)
            raise ApiError(404, "unknown_model", f"The model {name[:100]!r} is not served here; there are {names}.")
        if name in self._loaded:
            self._loaded.move_to_end(name)
        return self._loaded.get(name)

    async def _loaded_soon(self, name: str) -> Served:
        if name not in self._loading:
            self._loading[name] = asyncio.create_task(self._add(name))
        # Shielded, because other callers may wait for the same load.
        return await asyncio.shield(self._loading[name])

    async def _add(self, name: str) -> Served:
        try:
            async with self._room:
                while self._places == 0:
                    unused = next((name for name in self._loaded if not self._users[name]), None)
                    if unused is None:
                        await self._room.wait()
                    else:
                        await self._evict(unused)
                self._places -= 1
            self._loaded[name] = await self._load(name)
            return self._loaded[name]
        except Exception as error:
            self._places += 1
            _log.error("the model %s cannot be loaded: %s", name, one_line(error))
            raise unavailable(f"The model {name!r} cannot be loaded; the server's log says why.", 60) from error
        finally:
            del self._loading[name]

    async def _evict(self, name: str) -> None:
        """Its memory is free afterwards. The next model loads then, so that there is never one too many."""
        await self._loaded.pop(name).close(_CLOSE_SECONDS)
        self._places += 1

    async def _load(self, name: str | None) -> Served:
        config = self._config
        began = time.monotonic()
        model = config.model if name is None else config.models[name]
        others = [] if name is None else [served.extractor for served in self.loaded]
        extractor, rate = await asyncio.to_thread(_load_warm, config, model, others)
        queue = Queue(extractor.batch_tokens, config.limits, Rate(extractor.batch_tokens, rate))
        runner = Runner(extractor, queue, stuck_seconds=config.stuck_seconds, observe=self._observe)
        name = name or extractor.package.name
        _log.info("model %s ready after %.1f s: %.0f sub-words/s", name, time.monotonic() - began, rate)
        return Served(name, extractor, runner, Health(runner))

    async def close(self, seconds: float) -> None:
        """Answers what is queued for at most `seconds`."""
        await asyncio.gather(*(model.close(seconds) for model in self.loaded))


def _load_warm(config: ServeConfig, model: str, others: list[Extractor]) -> tuple[Extractor, float]:
    """Returns the sub-words per second that it reads, too. `others` are the Extractors in memory."""
    extractor = Extractor.load(
        model,
        device=config.device,
        precision=config.precision,
        batch_tokens=config.batch_tokens,
        threads=config.threads,
    )
    for other in others:
        with contextlib.suppress(UserError):  # it has been closed since
            _share(extractor.package, other.package)
    return extractor, warm_up(extractor)


def _share(package: Package, other: Package) -> None:
    """Adapters over one base, and the base itself, share the weights that they do not change."""
    if package.base_fingerprint == other.base_fingerprint:
        share_weights(package.model, other.model)


def warm_up(extractor: Extractor) -> float:
    """Runs passes of all lengths, so that no request waits for kernels to be chosen or memory to be claimed: each alone
    and as full as passes get, but on a CPU, where a full pass takes long and claims nothing, only the longest is full.
    Returns the sub-words per second of the last passes, one in each lane.
    """
    words, longest = 8, extractor.package.config.max_words
    while True:
        [(_, rows)] = extractor.plan([(0, " ".join(["spanlake"] * min(words, longest)), _WARM_LABELS)])
        row = max(rows, key=lambda row: row.tokens)
        last = words >= longest or len(rows) > 1
        _timed_passes(extractor, [row])
        if last or extractor.device.type == "cuda":
            rate = _timed_passes(extractor, [row] * max(1, extractor.batch_tokens // row.tokens))
        if last:
            return rate
        words *= 2


def _timed_passes(extractor: Extractor, rows: list[Row]) -> float:
    """Sub-words per second of such a pass in every lane. Scores come back to the CPU, so the device has finished."""
    work = extractor.scorer.prepare(rows)
    began = time.monotonic()
    for future in [extractor.scorer.submit(work) for _ in range(extractor.lanes)]:
        future.result()
    return extractor.lanes * work.tokens / (time.monotonic() - began)
