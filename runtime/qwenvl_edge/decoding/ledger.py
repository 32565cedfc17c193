"""Seconds of computing that each client caused recently; the client with the fewest is answered first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

_HALF_LIFE_S = 10.0
_FORGOTTEN_S = 1e-3
_LOOK_AT = 64  # clients


class Ledger:
    """Seconds of computing by client, with a half-life of _HALF_LIFE_S; may be used from several threads.

    clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._look_at = _LOOK_AT
        self._spent: dict[str, tuple[float, float]] = {}  # seconds, and when they were counted

    def others(self, client: str) -> bool:
        """Tell whether another client has asked recently."""
        return any(self.spent(each) >= _FORGOTTEN_S for each in list(self._spent) if each != client)

    def charge(self, client: str, seconds: float) -> None:
        """Count computing for a client, and forget those that have not asked for long."""
        self._spent[client] = self.spent(client) + seconds, self._clock()
        if len(self._spent) > self._look_at:
            for idle in [each for each in list(self._spent) if self.spent(each) < _FORGOTTEN_S]:
                self._spent.pop(idle, None)
            self._look_at = max(_LOOK_AT, 2 * len(self._spent))

    def share(self, clients: Iterable[str], seconds: float) -> None:
        """Count computing for several clients at once, in equal parts."""
        each = list(clients)
        for client in each:
            self.charge(client, seconds / len(each))

    def spent(self, client: str) -> float:
        """Return the seconds of computing that a client caused recently."""
        seconds, since = self._spent.get(client, (0.0, 0.0))
        return seconds * 2.0 ** ((since - self._clock()) / _HALF_LIFE_S) if seconds else 0.0
