"""Progress of a comparison: named stages of known weight, reported to a progress bar."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], object]
"""Called with (units done, units in total, the step at hand)."""


def silent(done: int, total: int, what: str) -> None:
    """Report nothing."""


class Stages:
    """Counts the units of stages, `total` in all; units of different stages take about the same time."""

    def __init__(self, progress: Progress, total: int):
        self._progress = progress
        self._total = total
        self._done = 0

    def begin(self, what: str, units: int, steps: int) -> Callable[[], None]:
        """Begin a stage of so many steps; the function returned is to be called after each."""
        first, made = self._done, 0
        self._done += units
        self._progress(first, self._total, what)

        def step() -> None:
            nonlocal made
            made += 1
            self._progress(first + units * made // steps, self._total, what)

        return step
