"""Writing to a terminal, or to a file in its place."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

_BAR_WIDTH = 30


def say(text: str, *, end: str = "\n", to: TextIO | None = None) -> None:
    """Write `text` at once, to stdout unless told otherwise."""
    stream = sys.stdout if to is None else to
    stream.write(text + end)
    stream.flush()


class ProgressBar:
    """Called with (done, total, what): a bar on a terminal, one plain line a step elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar = stream.isatty()
        self._shown = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` units are done and `what` is being worked on."""
        if not self._bar:
            if what != self._shown:
                say(what, to=self._stream)
            self._shown = what
            return
        share = done / total if total else 0.0
        filled = round(share * _BAR_WIDTH)
        line = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {share:4.0%} {what}"[:79]
        if line != self._shown:
            say(f"\r{line.ljust(len(self._shown))}", end="", to=self._stream)
        self._shown = line

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar and self._shown:
            say("", to=self._stream)
