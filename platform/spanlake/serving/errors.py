"""What an HTTP or gRPC caller can be told when there is no answer."""

from __future__ import annotations

from typing import Any


class Gone(Exception):
    """The client has closed its connection."""


class ApiError(Exception):
    """An answer that is an error. `kind` is for programs, `message` one sentence for people."""

    def __init__(
        self, status: int, kind: str, message: str, *, retry_after: float | None = None, **details: Any
    ) -> None:
        """`retry_after` is in seconds; `details` go into the answer as they are."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.details = details

    def body(self) -> dict[str, Any]:
        return {"error": {"type": self.kind, "message": self.message, **self.details}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, rounded up, where trying again helps."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, -int(-self.retry_after // 1)))}


def too_large(message: str) -> ApiError:
    return ApiError(413, "too_large", message)


def invalid(message: str, **details: Any) -> ApiError:
    return ApiError(422, "invalid", message, **details)


def malformed(message: str) -> ApiError:
    return ApiError(400, "malformed", message)


def unavailable(message: str, retry_after: float = 1.0) -> ApiError:
    return ApiError(503, "unavailable", message, retry_after=retry_after)
