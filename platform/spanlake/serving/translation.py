"""Turns errors of the library into errors of the API."""

from __future__ import annotations

import logging

import torch

from spanlake.errors import UserError
from spanlake.serving.errors import ApiError, invalid, too_large, unavailable
from spanlake.serving.queue import DeadlineError, OverloadedError, StoppedError, TooMuchError

_log = logging.getLogger(__name__)


def translate(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return ApiError(429, "overloaded", str(error), retry_after=error.retry_after)
    if isinstance(error, DeadlineError):
        return ApiError(504, "deadline", str(error), retry_after=1)
    if isinstance(error, StoppedError):
        return unavailable(str(error))
    if isinstance(error, TooMuchError):
        return too_large(str(error))
    if isinstance(error, UserError):
        return invalid(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return too_large("The text and its labels do not fit into the memory of the server's device; send less.")
    _log.error("a text failed", exc_info=error)
    return ApiError(500, "internal", "The server failed over this text; its log says why.")
