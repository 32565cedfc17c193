"""Messages of others, which may hold anything: an unusable one is logged and passed over, and the node goes on."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import printable

_LINE = 500
_REASON = 200  # characters of a library's message
_LINES = 64  # remembered


def reason(error: BaseException) -> str:
    """Return a library's message as one line, without the line of its source that Zenoh names."""
    return " ".join(re.sub(r" at \S+\.rs:\d+\.?", "", str(error)).split())[:_REASON].rstrip(".") or "no reason given"


class Messages:
    """Reads messages of others: whatever one holds, it is logged and passed over.

    Args:
        log: takes a line; the same line comes once in REPEAT_S seconds at most: a broken camera sends 30 a second.
    """

    REPEAT_S = 5.0

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    @contextlib.contextmanager
    def passing_over(self, what: str) -> Iterator[None]:
        """Log an error of the `with` block, which reads or answers `what`, instead of raising it."""
        try:
            yield
        except QwenVLError as error:
            self.log(f"{what}: {error}")
        except Exception as error:  # a message, and the library that brought it, may raise anything
            self.log(f"{what}: it cannot be used: {type(error).__name__}: {reason(error)}.")

    def log(self, line: str) -> None:
        """Log one line of at most _LINE characters, unless it was logged a moment ago."""
        line = printable(line)
        line = line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."
        now = time.monotonic()
        if now - self._said.get(line, -math.inf) < self.REPEAT_S:
            return
        if len(self._said) >= _LINES:
            self._said.clear()
        self._said[line] = now
        with contextlib.suppress(Exception):  # nobody is left to be told
            self._log(line)
