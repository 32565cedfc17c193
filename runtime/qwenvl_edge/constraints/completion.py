"""How a constrained answer that was cut can be completed: a short text that its form still allows.

llguidance tells what may come next, not what comes to an end soon, so the end is searched: states are followed in the
order of what was paid for them, where the first id that fits is cheap and passing it over is dear.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_PASSED_OVER = 64  # in ids: so long a way is followed before another one is begun
_MOST_STATES = 500
_CLOSERS = '"}])>.,:'


def preference(single_bytes: Mapping[int, int], closing_tags: Sequence[int], opening_tags: Sequence[int]) -> list[int]:
    """In which order ids are tried: what closes, then what is short for a value, then the other bytes.

    Args:
        single_bytes: the ids of the bytes 0..255.
        closing_tags: ids of control tokens that end something, such as </box>.
        opening_tags: ids of those that begin something.
    """
    closers = _CLOSERS.encode()
    digits = b"0123456789"
    others = [byte for byte in (*range(32, 256), *range(32)) if byte not in closers and byte not in digits]
    values = [single_bytes[byte] for byte in (*digits, *others)]
    return [*closing_tags, *(single_bytes[byte] for byte in closers), *opening_tags, *values]


def shortest_end(matcher: Any, order: Sequence[int]) -> list[int]:
    """Ids that complete what an llguidance matcher has seen; none if it is complete or no end was found soon.

    order: the ids to try, the most welcome first.
    """
    tie = itertools.count()
    waiting: list[tuple[int, int, Any, list[int], int]] = [(0, next(tie), matcher.deep_copy(), [], 0)]
    for _ in range(_MOST_STATES):
        if not waiting:
            break
        paid, _, state, path, tried = heapq.heappop(waiting)
        if not tried:
            forced: list[int] = state.compute_ff_tokens()
            state.consume_tokens(forced)
            path = path + forced
            if state.is_accepting():
                return path
        place = next((i for i in range(tried, len(order)) if state.validate_tokens([order[i]])), None)
        if place is None:
            continue
        heapq.heappush(waiting, (paid + _PASSED_OVER, next(tie), state, path, place + 1))
        further = state.deep_copy()
        further.consume_token(order[place])
        heapq.heappush(waiting, (paid + 1, next(tie), further, [*path, order[place]], 0))
    return []
