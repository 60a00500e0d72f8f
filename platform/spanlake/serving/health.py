"""Whether a model answers, told at once: nobody who asks waits for the model."""

from __future__ import annotations

import asyncio
import time

from spanlake.inference.settings import Settings
from spanlake.serving.queue import Caller, DeadlineError
from spanlake.serving.runner import Runner
from spanlake.serving.translation import translate

_QUIET_SECONDS = 5.0  # without a pass, after which a small one is tried
_TRIAL_SECONDS = 20.0  # that this pass may take
_TEXT = "Ada Lovelace lived in London."
_SETTINGS = Settings.make(["person"])


class Health:
    """Of one model. Belongs to one event loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._problem: str | None = None  # of the last trial
        self._trial: asyncio.Task[None] | None = None

    def problem(self) -> str | None:
        """Why the model does not answer, as far as is known. Begins a trial where passes do not tell it: none has run
        lately, or the last one failed.
        """
        runner = self._runner
        if runner.is_stuck():
            return "a forward pass takes too long."
        is_quiet = not runner.queue.cost and runner.lanes.idle_seconds > _QUIET_SECONDS
        is_unknown = is_quiet or runner.lanes.is_failing or self._problem is not None
        if is_unknown and (self._trial is None or self._trial.done()):
            self._trial = asyncio.create_task(self._try())
        return self._problem

    async def _try(self) -> None:
        try:
            search = await self._runner.read(_SETTINGS)
            [answer] = self._runner.submit(Caller(), [_TEXT], search, time.monotonic() + _TRIAL_SECONDS)
            await asyncio.wait_for(answer, _TRIAL_SECONDS)
            self._problem = None
        except asyncio.TimeoutError:
            self._problem = str(DeadlineError(f"it took more than {_TRIAL_SECONDS:g} s over a short text."))
        except Exception as error:
            self._problem = translate(error).message
