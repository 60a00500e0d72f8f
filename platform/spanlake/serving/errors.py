"""The errors that an HTTP or gRPC caller can get."""

from __future__ import annotations

import math
from typing import Any


class Gone(Exception):
    """The client has closed its connection."""


class ApiError(Exception):
    """An answer that is an error. `kind` is for programs, and `message` is one sentence for people."""

    def __init__(
        self, status: int, kind: str, message: str, *, retry_after: float | None = None, **details: Any
    ) -> None:
        """`retry_after` is in seconds; `details` go into the body as they are."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.allow: str | None = None  # methods, with 405
        self.details = details

    def body(self) -> dict[str, Any]:
        return {"error": {"type": self.kind, "message": self.message, **self.details}}

    def headers(self) -> dict[str, str]:
        """Returns the headers; `Retry-After`, in whole seconds, is among them if trying again helps."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.allow is not None:
            found["Allow"] = self.allow
        if self.status == 401:
            found["WWW-Authenticate"] = 'Basic realm="Spanlake", charset="UTF-8"'  # Chrome reads one scheme a line
        return found


def too_large(message: str) -> ApiError:
    return ApiError(413, "too_large", message)


def invalid(message: str, **details: Any) -> ApiError:
    return ApiError(422, "invalid", message, **details)


def malformed(message: str) -> ApiError:
    return ApiError(400, "malformed", message)


def unavailable(message: str, retry_after: float = 1.0) -> ApiError:
    return ApiError(503, "unavailable", message, retry_after=retry_after)
