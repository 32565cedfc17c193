"""Time that the server works on a request before the engine gets it, or before it is refused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_METER: ContextVar[Meter | None] = ContextVar("_METER", default=None)


class Meter:
    """Adds up the time of work; waiting for a turn is none. seconds: what was added."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of the `with` block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


@contextlib.contextmanager
def metered(tell: Callable[[float], None]) -> Iterator[None]:
    """Let work in the `with` block be added up, as far as its asyncio task does it, and tell the seconds at the end."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield
    finally:
        _METER.reset(token)
        tell(meter.seconds)


def current() -> Meter:
    """Return the meter of the request that this task works on; one that nobody reads if there is none."""
    return _METER.get() or Meter()
