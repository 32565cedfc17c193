"""Who may use the engine: callers take turns, first come first served."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from qwenvl_edge.errors import QwenVLError

_POLL_S = 0.02  # how often a waiting caller looks whether it was cancelled, which may come from a signal


class Turns:
    """A fair lock that can be waited for with a way out.

    It may be released by another thread than took it, also by the garbage collector in the middle of `take`: a stream
    that was forgotten ends wherever it is collected.
    """

    def __init__(self) -> None:
        self._state = threading.RLock()
        self._waiting: deque[threading.Event] = deque()
        self._busy = False
        self._owner: int | None = None

    @contextlib.contextmanager
    def take(self, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for the turn, hold it for the `with` block and yield True; yield False if `give_up` came true before.

        Raises:
            QwenVLError: this thread holds the turn already.
        """
        if self._owner == threading.get_ident():
            raise QwenVLError("a stream of this engine is still open in this thread; read it to its end or close it.")
        if not self._acquire(give_up):
            yield False
            return
        self._owner = threading.get_ident()
        try:
            yield True
        finally:
            self._owner = None
            self._release()

    def _acquire(self, give_up: Callable[[], bool]) -> bool:
        mine = threading.Event()
        with self._state:
            self._waiting.append(mine)
            self._pass_on()
        try:
            while not mine.wait(_POLL_S):
                if give_up():
                    return self._leave(mine)
                with self._state:
                    self._pass_on()
        except BaseException:  # KeyboardInterrupt
            if self._leave(mine):
                self._release()
            raise
        return True

    def _leave(self, mine: threading.Event) -> bool:
        """Stop waiting; return whether the turn came nevertheless."""
        with self._state:
            if not mine.is_set():
                self._waiting.remove(mine)
            return mine.is_set()

    def _release(self) -> None:
        with self._state:
            self._busy = False
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            self._waiting.popleft().set()
