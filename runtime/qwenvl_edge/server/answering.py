"""The computing side of the server, as the rest of it sees that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from qwenvl_edge.constraints.ending import Seek
from qwenvl_edge.replies.reply import Reply


class Answering(Protocol):
    """Computes the answers: a Batcher, or a fleet.dispatch.Dispatcher, which stands for several of them."""

    @property
    def waiting(self) -> int:
        """Requests that are not begun."""

    @property
    def running(self) -> int:
        """Answers begun and not ended."""

    @property
    def submit(self) -> Callable[..., Future[Reply]]:
        """See Batcher.submit."""

    def charge(self, client: str, seconds: float) -> None:
        """Count work that was done for a client outside of the engine."""

    def seek_by(self, seek: Seek) -> None:
        """Have the ends of forms that were cut found by `seek`, called in other threads, where this computes here."""

    def close(self) -> None:
        """Take no more requests, finish those that are there, and end."""
