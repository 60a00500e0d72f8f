"""Judges whether a model answers, without waiting for it."""

from __future__ import annotations

import asyncio
import time

from spanlake.inference.settings import Settings
from spanlake.serving.queue import Caller, DeadlineError
from spanlake.serving.runner import Runner
from spanlake.serving.translation import translate

_QUIET_SECONDS = 5.0  # without a pass; then a small one is tried
_TRIAL_SECONDS = 20.0  # for this small pass
_TEXT = "Ada Lovelace lived in London."
_SETTINGS = Settings.make(["person"])


class Health:
    """The health of one model."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._problem: str | None = None  # of the last trial
        self._trial: asyncio.Task[None] | None = None

    def problem(self) -> str | None:
        """Returns why the model does not answer, or None as far as is known.

        If no pass has run recently or the last one failed, it starts a small pass in the background. The next call
        returns the result.
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
            searches = await self._runner.read([_SETTINGS])
            [answer] = self._runner.submit(Caller(), [_TEXT], searches, time.monotonic() + _TRIAL_SECONDS)
            await asyncio.wait_for(answer, _TRIAL_SECONDS)
            self._problem = None
        except asyncio.TimeoutError:
            self._problem = str(DeadlineError(f"it took more than {_TRIAL_SECONDS:g} s over a short text."))
        except Exception as error:
            self._problem = translate(error).message
