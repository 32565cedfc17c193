"""The completion of a constrained answer that was cut: a short text that its form still allows.

llguidance tells the ids that may come next, not those that lead to an end soon. So the end is found by a best-first
search over paths of ids: taking the first id that fits costs 1, skipping it costs more, at first little (the path may
lead nowhere), then much (the end may be far). One matcher walks from path to path, taking ids back and taking others,
so that the search holds one state however many paths wait.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

_SEARCHES = ((64, 500), (1024, 1500))  # cost of a skip, in ids that a path is followed for before another; most steps
_LONGEST = 4096  # ids, of single bytes most; a form that needs more is left open
_SECONDS = 0.25
_CLOSERS = '"@}])>,:'  # no point: after one digits may go on for ever, as in the fractions of a second

Rest: TypeAlias = Callable[[], None]
"""Called between two steps of a search, whose thread may rest there so that others go on."""


def restless() -> None:
    """Go on at once: the Rest of a search that nobody else waits for."""


def preference(single_bytes: Mapping[int, int], closing_tags: Sequence[int], opening_tags: Sequence[int]) -> list[int]:
    """Return ids in the order in which they are tried: closing ones, then those of short values, then other bytes.

    Args:
        single_bytes: the ids of the bytes 0..255.
        closing_tags: ids of control tokens that close something, such as </box>.
        opening_tags: ids of those that open something.
    """
    closers = _CLOSERS.encode()
    digits = b"0123456789"
    others = [byte for byte in (*range(32, 256), *range(32)) if byte not in closers and byte not in digits]
    values = [single_bytes[byte] for byte in (*digits, *others)]
    return [*closing_tags, *(single_bytes[byte] for byte in closers), *opening_tags, *values]


def shortest_end(
    matcher: Any,
    order: Sequence[int],
    *,
    longest: int = _LONGEST,
    seconds: float = _SECONDS,
    rest: Rest = restless,
) -> list[int]:
    """Return the ids that complete an llguidance matcher's form; none if it is complete or no end was found soon.

    Args:
        matcher: must not be used after this.
        order: the ids to try, the preferred first.
        longest: the most ids; paths that cannot end within them are dropped.
        seconds: the computing time after which no end is looked for any more.
        rest: called before each step.
    """
    ends = time.thread_time() + seconds
    walk = _Walk(matcher)
    for skip, steps in _SEARCHES:
        if found := _search(walk, order, longest, ends, rest, skip=skip, steps=steps):
            return found
    return []


def _search(
    walk: _Walk, order: Sequence[int], longest: int, ends: float, rest: Rest, *, skip: int, steps: int
) -> list[int]:
    tie = itertools.count()
    waiting: list[tuple[int, int, list[int], int]] = [(0, next(tie), [], 0)]
    for _ in range(steps):
        if not waiting or time.thread_time() > ends:
            break
        rest()
        cost, _, path, tried = heapq.heappop(waiting)
        if not walk.go(path):
            break
        if not tried:
            path = path + walk.forced(longest - len(path))
            if walk.accepts():
                return path
        place = None if len(path) >= longest else walk.first(order, tried)
        if place is None:
            continue
        heapq.heappush(waiting, (cost + skip, next(tie), path, place + 1))
        heapq.heappush(waiting, (cost + 1, next(tie), [*path, order[place]], 0))
    return []


class _Walk:
    """A matcher and the ids that it took since the search began."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._taken: list[int] = []

    def go(self, path: list[int]) -> bool:
        """Stand at the end of a path; return False if the matcher gave up."""
        kept = min(len(self._taken), len(path))
        if self._taken[:kept] != path[:kept]:
            kept = next(i for i, (a, b) in enumerate(zip(self._taken, path, strict=False)) if a != b)
        if kept < len(self._taken) and not self._matcher.rollback(len(self._taken) - kept):
            return False
        self._taken = path
        return kept == len(path) or bool(self._matcher.consume_tokens(path[kept:]))

    def forced(self, room: int) -> list[int]:
        """Take the ids that must come next, `room` at most, and return them."""
        forced: list[int] = self._matcher.compute_ff_tokens()[: max(room, 0)]
        if forced:
            self._matcher.consume_tokens(forced)
            self._taken = self._taken + forced
        return forced

    def accepts(self) -> bool:
        """Tell whether the form may end here."""
        return bool(self._matcher.is_accepting())

    def first(self, order: Sequence[int], start: int) -> int | None:
        """Return the place in `order`, from `start` on, of the first id that may come next."""
        return next((i for i in range(start, len(order)) if self._matcher.validate_tokens([order[i]])), None)
