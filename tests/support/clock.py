"""A clock that a test moves."""

import pytest


class MovedClock:
    """Stands in for the time module: `now` is what the test says."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def moved_clock(monkeypatch: pytest.MonkeyPatch, *modules: str) -> MovedClock:
    """Put one clock in the place of the time module in some modules of the runtime."""
    clock = MovedClock()
    for module in modules:
        monkeypatch.setattr(f"qwenvl_edge.{module}.time", clock)
    return clock
