"""Look-up decoding: what comes next is guessed from what stands in the prompt and the answer already.

The last tokens are looked for further up in the sequence, and what followed there is proposed; the decoder then
computes several tokens in one call, and those proposed are kept as long as the sampler draws the same (prompt look-up
decoding, a form of speculative decoding, Leviathan et al. 2023). The n-th draw depends on the seed and the n-th logits
alone, so the answer is the one without proposals, greedy or sampled; its distribution is the model's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MOST = 12  # proposals: on a CPU, thirteen tokens take about one and a half times as long as one
_FIRST = 4
_LONGEST_PAUSE = 64
_LONGEST_MATCH = 6
_NOTHING = np.empty(0, np.int64)


class Lookup:
    """Proposes tokens, more of them while they are accepted; after misses it pauses, twice as long each time.

    A miss costs about a tenth of a step, so that text which never repeats is slowed by about one in a hundred. What
    was learned is kept from one answer to the next.
    """

    def __init__(self) -> None:
        self._size = _FIRST
        self._pause = 0
        self._misses = 0

    def start(self) -> None:
        """Begin an answer: half of what held back proposals before is forgotten."""
        self._misses //= 2
        self._pause = 0

    def propose(self, tokens: IntArray, limit: int) -> IntArray:
        """Return at most `limit` tokens that may follow `tokens`; often none."""
        if self._pause:
            self._pause -= 1
            return _NOTHING
        # After misses, a short match is not believed.
        return find_continuation(tokens, min(self._size, limit), shortest=3 if self._misses else 2)

    def report(self, proposed: int, accepted: int) -> None:
        """Learn how many of the proposed tokens were drawn."""
        if accepted:
            self._misses = 0
            self._size = min(2 * self._size, MOST) if accepted == proposed else max(accepted + 1, 2)
        elif proposed:
            self._misses += 1
            self._pause = min(2**self._misses, _LONGEST_PAUSE)
            self._size = _FIRST


def find_continuation(tokens: IntArray, limit: int, *, shortest: int) -> IntArray:
    """Return up to `limit` tokens that followed the longest, then latest, earlier match of the end of `tokens`.

    Matches of fewer than `shortest` tokens do not count.
    """
    if limit < 1 or len(tokens) <= shortest:
        return _NOTHING
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    for length in range(2, _LONGEST_MATCH + 1):
        longer = ends[ends >= length - 1]
        longer = longer[tokens[longer - (length - 1)] == tokens[-length]] if len(tokens) > length else longer[:0]
        if not len(longer):
            if length <= shortest:
                return _NOTHING
            break
        ends = longer
    start = int(ends[-1]) + 1
    found: IntArray = tokens[start : start + limit].copy()
    return found
