"""Look-up decoding: what comes next is guessed from what stands in the prompt and the answer already.

The last tokens are looked for further up in the sequence, and what followed there is proposed; the decoder then
computes several tokens in one call, and those proposed are kept as long as the sampler draws the same (prompt look-up
decoding, a form of speculative decoding, Leviathan et al. 2023). The n-th draw depends on the seed and the n-th logits
alone, so the answer is the one without proposals, greedy or sampled; its distribution is the model's.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MOST = 12  # proposals: on a CPU, thirteen tokens take about as long as one and two thirds
_FIRST = 4
_LONGEST_PAUSE = 64


class NGrams:
    """Where each pair and each triple of tokens was followed by something last; looked up in constant time."""

    def __init__(self, tokens: IntArray) -> None:
        self._ids: list[int] = tokens.tolist()
        ids, count = self._ids, len(self._ids)
        self._pairs = dict(zip(itertools.pairwise(ids), range(2, count), strict=False))
        self._triples = dict(zip(zip(ids, ids[1:], ids[2:], strict=False), range(3, count), strict=False))

    def append(self, token: int) -> None:
        """Go on with a token."""
        ids, end = self._ids, len(self._ids)
        if end > 1:
            self._pairs[ids[-2], ids[-1]] = end
        if end > 2:
            self._triples[ids[-3], ids[-2], ids[-1]] = end
        ids.append(token)

    def continuation(self, limit: int, *, shortest: int) -> list[int]:
        """Up to `limit` tokens that followed the end of the sequence when it stood there before.

        The last three tokens are looked for, then, if `shortest` is 2, the last two.
        """
        ids = self._ids
        start = self._triples.get((ids[-3], ids[-2], ids[-1])) if len(ids) > 2 else None
        if start is None and shortest == 2 and len(ids) > 1:
            start = self._pairs.get((ids[-2], ids[-1]))
        return [] if start is None else ids[start : start + max(limit, 0)]


class Lookup:
    """Proposes tokens, more of them while they are accepted; after misses it pauses, twice as long each time.

    A miss costs about a tenth of a step, so that text which never repeats is slowed by about one in a hundred. How far
    proposals are trusted is kept from one answer to the next.
    """

    def __init__(self) -> None:
        self._size = _FIRST
        self._pause = 0
        self._misses = 0
        self._seen = NGrams(np.empty(0, np.int64))

    def start(self, tokens: IntArray) -> None:
        """Begin an answer behind a prompt: half of what held back proposals before is forgotten."""
        self._misses //= 2
        self._pause = 0
        self._seen = NGrams(tokens)

    def append(self, token: int) -> None:
        """Go on with a token of the answer."""
        self._seen.append(token)

    def propose(self, limit: int) -> IntArray:
        """Return at most `limit` tokens that may come next; often none."""
        found: list[int] = []
        if self._pause:
            self._pause -= 1
        else:  # after misses, a short match is not believed
            found = self._seen.continuation(min(self._size, limit), shortest=3 if self._misses else 2)
        return np.array(found, np.int64)

    def report(self, proposed: int, accepted: int) -> None:
        """Learn how many of the proposed tokens were drawn."""
        if accepted:
            self._misses = 0
            self._size = min(2 * self._size, MOST) if accepted == proposed else max(accepted + 1, 2)
        elif proposed:
            self._misses += 1
            self._pause = min(2**self._misses, _LONGEST_PAUSE)
            self._size = _FIRST
