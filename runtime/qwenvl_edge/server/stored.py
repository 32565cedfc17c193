"""Conversations of the Responses protocol, kept for a while, so that the next request can name its predecessor."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.server.errors import ApiError

_SECONDS = 3600.0
_BYTES = 64 << 20
_ENTRY_BYTES = 1 << 10  # of an entry beside its text
_SHARE = 4  # a key may take a part of the room, so that it cannot drive out the others' conversations


@dataclass(frozen=True)
class _Entry:
    salt: str
    messages: list[dict[str, Any]]
    bytes: int
    until: float


class StoredConversations:
    """Messages by the id of the response that ended them; the oldest go first. Safe to share between threads.

    Args:
        seconds: for how long they are kept.
        most_bytes: of all of them.
        clock: gives the time in seconds.
    """

    def __init__(
        self, *, seconds: float = _SECONDS, most_bytes: int = _BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def find(self, response: str, salt: str) -> list[dict[str, Any]]:
        """Return the messages up to a response that was made under the same salt.

        Raises:
            ApiError: it is not there any more, or never was.
        """
        with self._lock:
            self._drop_old()
            entry = self._entries.get(response)
        if entry is None or entry.salt != salt:
            raise ApiError(
                400,
                f"the response of previous_response_id is not kept (any more); send the whole conversation as input. "
                f"Responses are kept for {self._seconds / 60:g} minutes, in memory of {self._most >> 20} MiB.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return entry.messages

    def keep(self, response: str, salt: str, messages: list[dict[str, Any]]) -> None:
        """Keep messages, unless they alone take more than a key's share of the room."""
        size = _ENTRY_BYTES + _size(messages)
        with self._lock:
            if size > self._most // _SHARE:
                return
            self._drop_old()
            self._entries[response] = _Entry(salt, messages, size, self._clock() + self._seconds)
            self._shrink(self._most // _SHARE, salt)
            self._shrink(self._most)

    def _drop_old(self) -> None:
        now = self._clock()
        while self._entries and next(iter(self._entries.values())).until < now:
            self._entries.popitem(last=False)

    def _shrink(self, most: int, salt: str | None = None) -> None:
        """Drop the oldest, of one salt or of all, until they take `most` bytes."""
        own = [(name, each.bytes) for name, each in self._entries.items() if salt in (None, each.salt)]
        excess = sum(size for _, size in own) - most
        for name, size in own:
            if excess <= 0:
                return
            del self._entries[name]
            excess -= size


def _size(value: Any) -> int:
    """Return about how many bytes a JSON value takes."""
    if isinstance(value, str):
        return 64 + 2 * len(value)
    if isinstance(value, dict):
        return 256 + sum(_size(key) + _size(each) for key, each in value.items())
    return 64 + sum(map(_size, value)) if isinstance(value, list) else 32
