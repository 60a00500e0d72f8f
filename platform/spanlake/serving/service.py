"""What a server does for all protocols: texts in, entities out, within limits and deadlines."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from spanlake.decoding import Entity
from spanlake.errors import UserError, shown
from spanlake.inference.settings import Settings, read_rules
from spanlake.package import peek_metadata
from spanlake.redaction import KEYED, Redaction, Style, read_key
from spanlake.serving.about import about, trained_labels
from spanlake.serving.config import ServeConfig
from spanlake.serving.errors import ApiError, Gone, invalid, unavailable
from spanlake.serving.found import Form, Found
from spanlake.serving.models import Models, Served
from spanlake.serving.queue import Caller, TooMuchError
from spanlake.serving.runner import Observer
from spanlake.serving.schema import (
    ExtractRequest,
    ModelInfo,
    ModelList,
    ModelName,
    Offsets,
    Question,
    StreamedText,
    check_labels,
)
from spanlake.serving.translation import translate

if TYPE_CHECKING:
    from spanlake.rules import Rules

_SHORT_LABELS = 500  # of a request, checked in about a millisecond

Result = Found | ApiError


@dataclass(frozen=True)
class Answer:
    model: ModelName
    results: list[Result]  # one per text, by position
    is_redacted: bool = False  # whether the request asks for redacted texts

    @property
    def entities(self) -> int:
        """Returns how many there are in all texts."""
        return sum(len(result.entities) for result in self.results if isinstance(result, Found))


@dataclass(frozen=True)
class _Waiting:
    """A text of a stream, and its future answer."""

    text: str
    answer: asyncio.Future[list[Entity]]


class Service:
    """Belongs to one event loop. Tokenising, forward passes and decoding run on other threads."""

    def __init__(self, config: ServeConfig, models: Models, redact_key: bytes | None) -> None:
        """`redact_key` is the key of hashes and surrogates; without one, no request gets them."""
        self.config = config
        self._models = models
        self._redact_key = redact_key
        self._rules = {name: read_rules(file) for name, file in config.rules.items()}
        self._peeked = {name: peek_metadata(model) for name, model in config.models.items()}  # of those not loaded
        self._draining = False

    @classmethod
    async def load(cls, config: ServeConfig, observe_pass: Observer = lambda report: None) -> Service:
        """Loads the default model and warms it up. `observe_pass` is called on the event loop.

        Raises: PackageError, UserError as `Extractor.load` does.
        """
        redact_key = read_key(config.redact_key_file)
        models = Models(config, observe_pass)
        await models.load_default()
        if unknown := [name for name in config.descriptions if name not in models.names]:
            names = ", ".join(models.names)
            raise UserError(f"There is a description of the model {shown(unknown[0])}; the models are {names}.")
        return cls(config, models, redact_key)

    # --- answers ----------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Call this before a request is read. Raises: ApiError 503 while the server stops."""
        if self._draining:
            raise unavailable("The server is stopping; try again.")

    async def extract(self, request: ExtractRequest, gone: asyncio.Future[None] | None = None) -> Answer:
        """`gone` is done when the caller has gone away.

        Raises: ApiError 404, 413, 422, 429, 503, 504, or 500 where every text fails; Gone.
        """
        self.admit()
        request.check(self.config.limits)
        settings = await _settings_of(request, self._rules_of(request.rules))
        form = self._form(request.offsets, request.redact)
        seconds = self.config.limits.request_seconds
        work = asyncio.ensure_future(self._extract(request, settings, form, time.monotonic() + seconds))
        ends: set[asyncio.Future[Any]] = {work, gone} if gone else {work}
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise Gone if gone and gone.done() else _late(seconds)
        finally:
            work.cancel()

    async def _extract(self, request: ExtractRequest, settings: list[Settings], form: Form, deadline: float) -> Answer:
        texts = request.texts
        async with self._models.use(request.model) as model:
            with _translated():
                searches = await model.runner.read(settings)
                costs = (search.cost(text) for text, search in zip(texts, searches, strict=True))
                model.runner.queue.check_room(sum(costs))
                futures = model.runner.submit(Caller(), texts, searches, deadline)
            try:
                results = [await _result(text, future, form) for text, future in zip(texts, futures, strict=True)]
            finally:
                _drop(futures)
            for future in futures:
                if isinstance(error := future.exception(), TooMuchError):  # of all texts together
                    raise translate(error)
            answer = Answer(name_of(model), results, request.redact is not None)
        errors = [result for result in results if isinstance(result, ApiError)]
        again = next((error for error in errors if error.status in (503, 504)), None)
        if again or (errors and len(errors) == len(results)):
            raise again or errors[0]
        return answer

    async def stream(
        self, question: Question, texts: AsyncIterator[StreamedText | ApiError]
    ) -> AsyncIterator[ModelName | Result]:
        """Yields the model's name, then the result of each text in turn. Reads ahead at most `stream_window` texts.
        An error among the texts is a result of its own.

        Raises: ApiError as `extract` does. After it has begun, it waits if the queue is full.
        """
        self.admit()
        question.check(self.config.limits)
        rules = self._rules_of(question.rules)
        settings = question.settings(rules)
        form = self._form(question.offsets, question.redact)
        limits = self.config.limits
        async with self._models.use(question.model) as model:
            runner = model.runner
            caller = Caller(is_stream=True)
            with _translated():
                [of_all] = await runner.read([settings])
                runner.queue.check_room(model.extractor.batch_tokens)
                runner.submit(caller, [], [], 0)  # raises if the model has stopped
            yield name_of(model)
            waiting: deque[_Waiting | ApiError] = deque()
            try:
                async for line in texts:
                    if len(waiting) == limits.stream_window:
                        yield await _within(waiting.popleft(), form, limits.request_seconds)
                    if isinstance(line, ApiError):
                        waiting.append(line)
                        continue
                    try:
                        search = of_all
                        if line.labels is not None:
                            check_labels(line.labels, limits)
                            [search] = await runner.read([question.settings(rules, line.labels)])
                        runner.queue.check_cost(search.cost(line.text))
                    except (ApiError, UserError) as error:  # of this text alone
                        waiting.append(translate(error))
                        continue
                    with _translated():
                        [answer] = runner.submit(caller, [line.text], [search], float("inf"))
                    waiting.append(_Waiting(line.text, answer))
                while waiting:
                    yield await _within(waiting.popleft(), form, limits.request_seconds)
            finally:
                for each in waiting:
                    if not isinstance(each, ApiError):
                        each.answer.cancel()

    def _rules_of(self, name: str | None) -> Rules | None:
        if name is None:
            return None
        if name in self._rules:
            return self._rules[name]
        known = f"the rules are {', '.join(self._rules)}" if self._rules else "start it with --rules NAME=FILE"
        raise invalid(f"The rules {shown(name)} are not on this server; {known}.", field="rules")

    def _form(self, offsets: Offsets, style: Style | None) -> Form:
        if style is None:
            return Form(offsets, None)
        if style in KEYED and self._redact_key is None:
            raise invalid(
                f"redact is {style!r}, and this server has no key for it; ask for 'label' or 'mask', or start it with "
                "--redact-key-file.",
                field="redact",
            )
        try:
            return Form(offsets, Redaction(style, self._redact_key if style in KEYED else None))
        except UserError as error:  # a library is missing
            raise invalid(str(error), field="redact") from error

    # --- state ------------------------------------------------------------------------------------------------------

    def info(self) -> ModelInfo:
        model = self._models.default
        package = model.extractor.package
        return ModelInfo(
            name=model.name,
            fingerprint=package.fingerprint,
            device=str(model.extractor.device),
            precision=str(model.extractor.precision).removeprefix("torch."),
            max_width=package.config.widest,
            labels=trained_labels(package.metadata),
        )

    def list_models(self) -> ModelList:
        """Returns the models that a request may name, the default first."""
        loaded = {model.name: model.extractor.package.metadata for model in self._models.loaded}
        known = self._peeked | loaded
        return ModelList(
            default=self._models.names[0],
            models=self._models.names,
            about=[
                about(name, known[name], self.config.descriptions.get(name), name in loaded)
                for name in self._models.names
            ],
        )

    @property
    def batch_tokens(self) -> int:
        """Returns the padded sub-words that a pass of the default model may hold."""
        return self._models.default.extractor.batch_tokens

    @property
    def queued_tokens(self) -> int:
        return sum(model.runner.queue.cost for model in self._models.loaded)

    @property
    def queue_delay(self) -> float:
        """Returns the seconds of queued work, if the models worked one after another."""
        return sum(model.runner.queue.delay for model in self._models.loaded)

    @property
    def busy_seconds(self) -> float:
        """Returns the seconds that forward passes have taken since the start."""
        return sum(model.runner.lanes.busy_seconds for model in self._models.loaded)

    def check(self) -> None:
        """Returns at once. Raises: ApiError 503 where a model does not answer."""
        self.admit()
        for model in self._models.loaded:
            if problem := model.health.problem():
                raise unavailable(f"The model {model.name} does not answer: {problem}")

    async def close(self, seconds: float) -> None:
        """Refuses new requests, and answers those in work for at most `seconds`."""
        self._draining = True
        await self._models.close(seconds)


def name_of(model: Served) -> ModelName:
    return ModelName(name=model.name, fingerprint=model.extractor.package.fingerprint)


async def _settings_of(request: ExtractRequest, rules: Rules | None) -> list[Settings]:
    """Returns the settings of each text. Many labels are checked on another thread."""
    if sum(map(len, request.label_sets)) <= _SHORT_LABELS:
        return request.settings(rules)
    return await run_in_threadpool(request.settings, rules)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise translate(error) from error


async def _result(text: str, answer: asyncio.Future[list[Entity]], form: Form) -> Result:
    try:
        return await form.found(text, await answer)
    except Exception as error:
        return translate(error)


def _drop(answers: Sequence[asyncio.Future[list[Entity]]]) -> None:
    """Cancels those that are not there yet, and takes note of the others, so that asyncio reports no lost errors."""
    for answer in answers:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()


async def _within(waiting: _Waiting | ApiError, form: Form, seconds: float) -> Result:
    if isinstance(waiting, ApiError):
        return waiting
    try:
        return await asyncio.wait_for(_result(waiting.text, waiting.answer, form), seconds)
    except asyncio.TimeoutError:
        return _late(seconds)


def _late(seconds: float) -> ApiError:
    message = f"The texts were not answered within {seconds:g} s; send fewer at once, or try again."
    return ApiError(504, "deadline", message, retry_after=1)
