"""Reasoning before an answer: it may be cut at a budget, and a constraint waits for its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qwenvl_edge.constraints.ending import Seek, find_end


class Guide(Protocol):
    """Interface of objects that tell the ids that may come next, as constraints.matcher.Matcher does."""

    def allowed(self) -> bytes:
        """Return a byte per decodable id, 0 if it may not come next."""

    def allows(self, token: int) -> bool:
        """Tell whether an id may come next."""

    def forced(self) -> list[int]:
        """Return the ids that must come next."""

    def closing(self, seek: Seek = find_end) -> list[int]:
        """Return few ids that complete the form after what was taken; seek: finds them."""

    def take(self, token: int) -> bool:
        """Take the next id; return True if nothing but the end may follow."""


class ThinkingGuide:
    """Lets a model reason, `budget` tokens at most, and then follows the constraint of its answer.

    Args:
        inner: the constraint, if there is one.
        end: the id that ends the reasoning.
        gap: ids of the empty line between reasoning and answer.
        budget: None sets no limit.
        decodable: how many ids there are.
    """

    def __init__(
        self, inner: Guide | None, *, end: int, gap: Sequence[int], budget: int | None, decodable: int
    ) -> None:
        self._inner = inner
        self._closing = [*gap[:1], end, *gap]
        self._end = end
        self._gap = list(gap)
        self._budget = budget
        self._any = b"\x01" * decodable
        self._thinking = True
        self._count = 0
        self._due: list[int] = []

    def allowed(self) -> bytes:
        """See Guide.allowed."""
        return self._any if self._thinking or self._inner is None else self._inner.allowed()

    def allows(self, token: int) -> bool:
        """See Guide.allows."""
        return self._thinking or self._inner is None or self._inner.allows(token)

    def forced(self) -> list[int]:
        """See Guide.forced: the end of a reasoning that reached its budget, and the empty line before a constraint."""
        if self._due:
            return list(self._due)
        if self._thinking:
            over = self._budget is not None and self._count >= self._budget
            return list(self._closing) if over else []
        return [] if self._inner is None else self._inner.forced()

    def closing(self, seek: Seek = find_end) -> list[int]:
        """See Guide.closing."""
        if self._inner is None:
            return []
        opened = self._closing if self._thinking else self._due
        return [*opened, *self._inner.closing(seek)]

    def take(self, token: int) -> bool:
        """See Guide.take."""
        if self._thinking:
            self._count += 1
            if token == self._end:
                self._thinking = False
                self._due = list(self._gap) if self._inner is not None or self._budget is not None else []
            return False
        if self._due and token == self._due[0]:
            self._due.pop(0)
            return False
        self._due = []
        return self._inner is not None and self._inner.take(token)
