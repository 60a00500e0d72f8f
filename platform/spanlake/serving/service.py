"""What a server does, whatever protocol asks: texts in, entities out, within limits and deadlines."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spanlake.decoding import Entity
from spanlake.inference.settings import Settings
from spanlake.serving.config import ServeConfig
from spanlake.serving.errors import ApiError, unavailable
from spanlake.serving.models import Models, Served
from spanlake.serving.queue import Caller, TooMuchError
from spanlake.serving.runner import Observer
from spanlake.serving.schema import ExtractRequest, ModelInfo, ModelName, Question
from spanlake.serving.translation import translate

Result = list[Entity] | ApiError


@dataclass(frozen=True)
class Answer:
    model: ModelName
    results: list[Result]  # one per text, by position


class Service:
    """Belongs to one event loop. Tokenising, forward passes and decoding run on other threads."""

    def __init__(self, config: ServeConfig, models: Models) -> None:
        self.config = config
        self._models = models
        self._draining = False

    @classmethod
    async def load(cls, config: ServeConfig, observe_pass: Observer = lambda report: None) -> Service:
        """Loads the default model and warms it up. `observe_pass` is called on the event loop.

        Raises: PackageError, UserError as `Extractor.load` does.
        """
        models = Models(config, observe_pass)
        await models.load_default()
        return cls(config, models)

    # --- answers ----------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Call this before a request is read. Raises: ApiError 503 while the server stops."""
        if self._draining:
            raise unavailable("The server is stopping; try again.")

    async def extract(self, request: ExtractRequest) -> Answer:
        """Raises: ApiError 404, 413, 422, 429, 503, 504, or 500 where every text fails."""
        self.admit()
        request.check(self.config.limits)
        settings = request.settings()
        seconds = self.config.limits.request_seconds
        try:
            return await asyncio.wait_for(self._extract(request, settings, time.monotonic() + seconds), seconds)
        except asyncio.TimeoutError:
            raise _late(seconds) from None

    async def _extract(self, request: ExtractRequest, settings: Settings, deadline: float) -> Answer:
        async with self._models.use(request.model) as model:
            with _translated():
                search = await model.runner.read(settings)
                model.runner.queue.check_room(sum(map(search.cost, request.texts)))
                futures = model.runner.submit(Caller(), request.texts, search, deadline)
            results = list(await asyncio.gather(*map(_result, futures)))
            for future in futures:
                if isinstance(error := future.exception(), TooMuchError):  # of all texts together
                    raise translate(error)
            answer = Answer(name_of(model), results)
        errors = [result for result in results if isinstance(result, ApiError)]
        again = next((error for error in errors if error.status in (503, 504)), None)
        if again or (errors and len(errors) == len(results)):
            raise again or errors[0]
        return answer

    async def stream(
        self, question: Question, texts: AsyncIterator[str | ApiError]
    ) -> AsyncIterator[ModelName | Result]:
        """The model's name, then the result of each text in turn. At most `stream_window` texts are in work, and
        no more are read. An error among the texts is its own result.

        Raises: ApiError as `extract` does, but that a full queue makes it wait once it has begun.
        """
        self.admit()
        question.check(self.config.limits)
        settings = question.settings()
        limits = self.config.limits
        async with self._models.use(question.model) as model:
            runner = model.runner
            caller = Caller(is_stream=True)
            with _translated():
                search = await runner.read(settings)
                runner.queue.check_room(model.extractor.batch_tokens)
                runner.submit(caller, [], search, 0)  # raises where the model has stopped
            yield name_of(model)
            waiting: deque[asyncio.Future[list[Entity]] | ApiError] = deque()
            try:
                async for text in texts:
                    if len(waiting) == limits.stream_window:
                        yield await _within(waiting.popleft(), limits.request_seconds)
                    if isinstance(text, ApiError):
                        waiting.append(text)
                        continue
                    try:
                        runner.queue.check_cost(search.cost(text))
                    except TooMuchError as error:  # of this text alone
                        waiting.append(translate(error))
                        continue
                    with _translated():
                        waiting += runner.submit(caller, [text], search, float("inf"))
                while waiting:
                    yield await _within(waiting.popleft(), limits.request_seconds)
            finally:
                for each in waiting:
                    if not isinstance(each, ApiError):
                        each.cancel()

    # --- state ------------------------------------------------------------------------------------------------------

    def info(self) -> ModelInfo:
        model = self._models.default
        package = model.extractor.package
        labels = package.metadata.get("labels")
        return ModelInfo(
            name=model.name,
            fingerprint=package.fingerprint,
            device=str(model.extractor.device),
            precision=str(model.extractor.precision).removeprefix("torch."),
            max_width=package.config.max_width,
            labels=[label for label in labels if isinstance(label, str)] if isinstance(labels, list) else [],
        )

    @property
    def names(self) -> list[str]:
        """Of the models that a request may name, the default first."""
        return self._models.names

    @property
    def batch_tokens(self) -> int:
        """Padded sub-words that a pass of the default model may hold."""
        return self._models.default.extractor.batch_tokens

    @property
    def queued_tokens(self) -> int:
        return sum(model.runner.queue.cost for model in self._models.loaded)

    @property
    def queue_delay(self) -> float:
        """Seconds of work that wait, were the models to work one after another."""
        return sum(model.runner.queue.delay for model in self._models.loaded)

    @property
    def busy_seconds(self) -> float:
        """That forward passes have taken since the start."""
        return sum(model.runner.lanes.busy_seconds for model in self._models.loaded)

    def check(self) -> None:
        """Returns at once. Raises: ApiError 503 where a model does not answer."""
        self.admit()
        for model in self._models.loaded:
            if problem := model.health.problem():
                raise unavailable(f"The model {model.name} does not answer: {problem}")

    async def close(self, seconds: float) -> None:
        """Takes no more requests, and answers those in work for at most `seconds`."""
        self._draining = True
        await self._models.close(seconds)


def name_of(model: Served) -> ModelName:
    return ModelName(name=model.name, fingerprint=model.extractor.package.fingerprint)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise translate(error) from error


async def _result(answer: asyncio.Future[list[Entity]] | ApiError) -> Result:
    if isinstance(answer, ApiError):
        return answer
    try:
        return await answer
    except Exception as error:
        return translate(error)


async def _within(answer: asyncio.Future[list[Entity]] | ApiError, seconds: float) -> Result:
    try:
        return await asyncio.wait_for(_result(answer), seconds)
    except asyncio.TimeoutError:
        return _late(seconds)


def _late(seconds: float) -> ApiError:
    message = f"The texts were not answered within {seconds:g} s; send fewer at once, or try again."
    return ApiError(504, "deadline", message, retry_after=1)
