"""What may end an answer before the model does: a cancel token, a deadline."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

Interruption: TypeAlias = Literal["cancelled", "deadline"]


class CancelToken:
    """Ends the answers that it was given to; may be used from any thread and from a signal handler.

    One token may be given to several calls. It stays cancelled: take a new one for the next question.
    """

    def __init__(self) -> None:
        self._cancelled = False  # a plain attribute: a lock could be held by the code that a signal interrupts

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the answers to end; they do so within one prefill chunk, picture or token."""
        self._cancelled = True


class Control:
    """Watches an answer's tokens and its deadline, `deadline_ms` after `started` (of time.perf_counter)."""

    def __init__(self, *tokens: CancelToken, started: float, deadline_ms: float | None = None) -> None:
        self._tokens = tokens
        self._deadline = None if deadline_ms is None else started + deadline_ms / 1e3
        self._reason: Interruption | None = None

    @property
    def reason(self) -> Interruption | None:
        """Why the answer must end now, or None; the first reason stays."""
        if self._reason is None:
            if any(token.cancelled for token in self._tokens):
                self._reason = "cancelled"
            elif self._deadline is not None and time.perf_counter() >= self._deadline:
                self._reason = "deadline"
        return self._reason
