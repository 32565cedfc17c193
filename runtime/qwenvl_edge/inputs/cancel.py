"""CancelToken: ends answers from elsewhere."""

from __future__ import annotations


class CancelToken:
    """Ends the answers that it was given to; may be used from any thread and from a signal handler.

    One token may be given to several calls. It stays cancelled: take a new one for the next question.
    """

    def __init__(self) -> None:
        self._cancelled = False  # a plain attribute: a lock could be held by the code that a signal interrupts

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the answers to end; they do so within one prefill chunk, picture or token."""
        self._cancelled = True
