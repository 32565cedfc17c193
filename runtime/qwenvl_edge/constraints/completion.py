"""The completion of a constrained answer that was cut: a short text that its form still allows.

llguidance tells the ids that may come next, not those that lead to an end soon. So the end is found by a best-first
search over states: taking the first id that fits costs 1, skipping it costs _SKIP.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_SKIP = 64  # in ids: a path is followed for so long before another one is begun
_MOST_STATES = 500
_CLOSERS = '"}])>.,:'


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


def shortest_end(matcher: Any, order: Sequence[int]) -> list[int]:
    """Return the ids that complete an llguidance matcher's form; none if it is complete or no end was found soon.

    order: the ids to try, the preferred first.
    """
    tie = itertools.count()
    waiting: list[tuple[int, int, Any, list[int], int]] = [(0, next(tie), matcher.deep_copy(), [], 0)]
    for _ in range(_MOST_STATES):
        if not waiting:
            break
        cost, _, state, path, tried = heapq.heappop(waiting)
        if not tried:
            forced: list[int] = state.compute_ff_tokens()
            state.consume_tokens(forced)
            path = path + forced
            if state.is_accepting():
                return path
        place = next((i for i in range(tried, len(order)) if state.validate_tokens([order[i]])), None)
        if place is None:
            continue
        heapq.heappush(waiting, (cost + _SKIP, next(tie), state, path, place + 1))
        further = state.deep_copy()
        further.consume_token(order[place])
        heapq.heappush(waiting, (cost + 1, next(tie), further, [*path, order[place]], 0))
    return []
