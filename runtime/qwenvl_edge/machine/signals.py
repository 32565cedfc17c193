"""SIGTERM and SIGHUP end a program as Ctrl-C does, so that unfinished files are removed on the way out.

A second signal, Ctrl-C among them, does not disturb the removal.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")  # Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end. code: the exit code for that signal."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the main thread at the first such signal within the block; later signals are ignored.

    A signal that is ignored already (SIGHUP under nohup) stays ignored. Native code that was interrupted may raise an
    error of its own instead, or go on: the block ends as interrupted all the same.
    """
    before = {number: signal.getsignal(number) for number in _numbers()}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [number for number, handler in before.items() if handler in usual]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may handle signals

    came: list[KeyboardInterrupt] = []

    def end(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        came.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
        raise came[0]

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
        if came:
            raise came[0]
    except Exception:
        if came:
            raise came[0] from None
        raise
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
