"""How long tests wait for what must come."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 300.0
"""Only a failure waits so long; a busy machine may need a minute for what takes a second otherwise."""


def until(condition: Callable[[], T], wait_s: float = PATIENCE_S) -> T:
    """Wait until something is so; return its value."""
    end = time.monotonic() + wait_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
    return value
