"""Forked processes: what holds threads of a library belongs to the process that opened it.

A fork copies memory but no threads. A child that computes with its parent's sessions waits for ever for threads that it
has not, and so does one that only ends, when the session's destructor joins them. So a child never computes with them
(`Owner.check` says so in one sentence), and never destroys them (`keep` makes them outlive it). It may open its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from typing import Any, NoReturn, TypeVar

from qwenvl_edge.errors import BackendError, QwenVLError

T = TypeVar("T")
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def keep(thing: T) -> T:
    """Return a thing that no forked child of this process is to destroy; its parts are not destroyed either."""
    _kept.add(thing)
    return thing


class Owner:
    """The process that opened something; pid: its number."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """True in the process that opened it."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Raise BackendError in a process that was forked from the one that opened it."""
        if os.getpid() != self.pid:
            raise BackendError(
                f"{self._what} was opened by process {self.pid}, from which this process, {os.getpid()}, was forked "
                "without its threads; open one here, or start processes by spawn."
            )


class NotPicklable:
    """A base of classes whose objects belong to their process; `_instead` says what to send or do instead."""

    _instead = "make one in the other process"

    def __reduce__(self) -> NoReturn:
        raise QwenVLError(f"a {type(self).__name__} cannot be copied or pickled; {self._instead}.")


def _outlive() -> None:
    """Keep what the parent opened alive for good, also while the interpreter ends, by references never given back.

    A library's own destructors run after the interpreter's end and wait for its threads as well. The exit handler that
    is registered here runs before them and ends the process with its exit code.
    """
    things = list(_kept)
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    if things:
        with contextlib.suppress(OSError, AttributeError):  # on_exit is glibc's
            library = ctypes.CDLL(None)
            library.on_exit(library._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_outlive)
