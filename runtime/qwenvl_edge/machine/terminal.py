"""Output to a terminal, or to a file if it is redirected."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import unicodedata
from types import TracebackType
from typing import TextIO

_BAR_WIDTH = 30
_JUDGED_AFTER_S = 5.0


class OutputError(Exception):
    """Output cannot be written. reason: why, as half a sentence; empty if its reader has gone."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def printable(text: str) -> str:
    """Return `text` as one line that does nothing to a terminal: what cannot be printed as Python writes it (\\n)."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def harmless(text: str, to: TextIO | None) -> str:
    """Return `text` as a terminal may get it: control characters and marks that turn the direction of text escaped.

    A model may write what it reads from a picture, and a terminal obeys control characters. Other streams get the text
    as it is.
    """
    if to is None or not to.isatty():
        return text
    return "".join(repr(each)[1:-1] if _commands(each) else each for each in text)


def _commands(character: str) -> bool:
    harmless_ones = "\n\t\u200c\u200d"  # the last two join or part letters and emoji
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in harmless_ones


def hold_standard_streams() -> None:
    """Put the null device in the place of a closed standard input, output or error.

    A file opened later would get its number, and what a library writes to its standard error would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def say(text: str, *, end: str = "\n", to: TextIO | None = None) -> None:
    """Write and flush `text`. to: a stream; None means stdout.

    Raises:
        OutputError: stdout is closed or full, or its reader has gone. Words that stderr does not take are dropped.
    """
    is_output = to is None or to is sys.stdout
    stream = sys.stdout if to is None else to
    try:
        if stream is None:
            raise OSError(0, "it is closed")
        stream.write(text + end)
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: closed by Python
        if is_output:
            gone = isinstance(error, BrokenPipeError)
            raise OutputError("" if gone else getattr(error, "strerror", None) or str(error)) from None


def note(text: str, *, to: TextIO | None = None) -> None:
    """Write a line about what was done beside the output proper; it is dropped where it cannot be written."""
    with contextlib.suppress(OutputError):
        say(text, to=to)


def give_up_output() -> None:
    """Send what is still buffered for stdout to the null device, so that the interpreter ends without complaint."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        sys.stdout.flush()


class ProgressBar:
    """Called with (done, total, what): draws a bar on a terminal, else writes one plain line per step.

    The bar says how much time is left, by the units done since the total was first given, unless `what` ends with it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()  # a closed stderr
        self._bar = self._stream.isatty()
        self._shown = ""
        self._begun = (0, 0, 0.0)  # the total, and how many units of it were done when

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` units are done, and `what` is the present step."""
        if not self._bar:
            if what != self._shown:
                say(what, to=self._stream)
            self._shown = what
            return
        share = done / total if total else 0.0
        filled = round(share * _BAR_WIDTH)
        left = "" if what.endswith(" left") else self._left(done, total)
        line = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {share:4.0%} {what}"[: 79 - len(left)] + left
        if line != self._shown:
            say(f"\r{line.ljust(len(self._shown))}", end="", to=self._stream)
        self._shown = line

    def _left(self, done: int, total: int) -> str:
        """The time left in words; nothing while there is too little to judge by."""
        now = time.monotonic()
        if self._begun[0] != total or done < self._begun[1]:
            self._begun = (total, done, now)
        _, first, begun = self._begun
        if done in (first, total) or now - begun < _JUDGED_AFTER_S:
            return ""
        left = (now - begun) / (done - first) * (total - done)
        return f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar and self._shown:
            say("", to=self._stream)
