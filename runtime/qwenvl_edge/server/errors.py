"""Errors as the protocol's clients know them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from qwenvl_edge.errors import BackendError, ContextError, ImageError, QwenVLError

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """An error that answers a request: HTTP status, one sentence, and the part of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def renamed(self, name: str, given: str, before: int = 0) -> ApiError:
        """Return the error of a request in which the field `name` is called `given`.

        before: so many items of it are not in `given`.
        """

        def told(text: str) -> str:
            counted = re.sub(rf"\b{name}\.(\d+)", lambda found: f"{given}.{int(found[1]) - before}", text)
            return re.sub(rf"\b{name}(?=[. ]|$)", given, counted)

        error = self.body["error"]
        param = error["param"]
        return ApiError(
            self.status,
            told(error["message"]),
            kind=error["type"],
            param=None if param is None else told(param),
            code=error["code"],
            headers=self.headers,
        )

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def overloaded(retry_after_s: int) -> ApiError:
    """Return the error for a request beyond the queue."""
    return ApiError(
        429,
        f"the server is busy and its queue is full; try again in {retry_after_s} s.",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def _overflow(error: ContextError) -> ApiError:
    """Return the error for a prompt that does not fit, in the words by which clients know it."""
    code = "context_length_exceeded"
    if error.limit is None:
        return ApiError(400, str(error), param="messages", code=code)
    many = f"{error.tokens} tokens" if error.tokens is not None else "many more"
    return ApiError(
        400,
        f"This model's maximum context length is {error.limit} tokens. However, your messages resulted in {many}; "
        f"shorten them or send fewer pictures ({code}).",
        param="messages",
        code=code,
    )


def from_engine(error: BaseException) -> ApiError:
    """Return the error that a client gets for one of the engine: its own fault, unless the backend failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return _overflow(error)
    if isinstance(error, ImageError):
        return ApiError(400, str(error), param="messages", code="invalid_image")
    if isinstance(error, QwenVLError) and not isinstance(error, BackendError):
        return ApiError(400, str(error))
    # The words of other errors may hold paths or worse: they go to the log only.
    return ApiError(500, "the server failed to compute the answer; its log says why.", kind=SERVER)
