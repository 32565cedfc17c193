"""The bytes that requests hold from the moment they arrive, counted over all of them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from qwenvl_edge.server.errors import SERVER, ApiError


class Budget:
    """Bytes of bodies that arrive and of requests that wait or are answered, up to `limit`.

    Where they do not suffice, the largest body that has not arrived as a whole is given up: whoever sends much and
    slowly must not keep out those who send little.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: set[Holding] = set()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return sum(each.bytes for each in self._held)

    def hold(self) -> Holding:
        """Return a holding of no bytes; leave its `with` block to free what it has by then."""
        return Holding(self)

    def add(self, holding: Holding) -> None:
        """Count a holding."""
        self._held.add(holding)

    def remove(self, holding: Holding) -> None:
        """Count a holding no more."""
        self._held.discard(holding)

    def make_room(self, holding: Holding) -> None:
        """Give up bodies until all fits. Raises ApiError where `holding` is the one to go."""
        while self.held > self._limit:
            arriving = [each for each in self._held if each.give_up is not None and each.bytes]
            largest = max(arriving, key=lambda each: each.bytes, default=holding)
            if largest is holding or largest.give_up is None:
                raise full()
            largest.bytes = 0
            largest.give_up()


class Holding:
    """Memory that one request holds. bytes: how many. give_up: ends its arrival; None once it is whole."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0
        self.give_up: Callable[[], object] | None = None

    def set(self, nbytes: int) -> None:
        """Hold so many bytes. Raises ApiError where they do not fit."""
        grows = nbytes > self.bytes
        self.bytes = nbytes
        if grows:
            self._budget.make_room(self)

    def __enter__(self) -> Holding:
        self._budget.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.remove(self)


def full() -> ApiError:
    """Return the error for a request whose bytes do not fit."""
    return ApiError(
        503,
        "the server holds as many bytes of requests as it may; try again in 2 s.",
        kind=SERVER,
        code="busy",
        headers={"Retry-After": "2"},
    )
