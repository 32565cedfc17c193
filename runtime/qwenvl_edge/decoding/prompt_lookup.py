"""Look-up decoding: the next tokens are guessed from the prompt and from earlier text.

The last tokens are searched further up in the sequence, and the tokens that followed there are proposed. The decoder
then computes several tokens in one call, and proposed tokens are kept as long as the sampler draws the same (prompt
look-up decoding, a form of speculative decoding, Leviathan et al. 2023). The n-th draw depends on the seed and the n-th
logits alone, so the answer is the one without proposals, greedy or sampled; its distribution is the model's.

A guess is made for every token and compared with the token that came, also where nothing is proposed. So it is known,
at no cost, how often guesses of a kind are right. The number of tokens proposed is the one that makes the answer
fastest, which may be none.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_NOTHING = np.empty(0, np.int64)

MOST = 12
_MOST_SEEN = 16384  # tokens; then all is forgotten, since keeping a part would hold up one answer in many
_SEEN_AGAIN = 16  # tokens of a prompt that was computed before: they tell which earlier question it is
_LONGEST = 8  # longer matches are as good as matches of this length
_FIRST_TRUST = (0.0, 0.0, 0.0, 0.4, 0.6, 0.7, 0.8, 0.8, 0.8)
_TRUST_RATE = 1 / 16
_COST_RATE = 1 / 8
_FIRST_COST = 0.1
_LEAST_COST = 0.01
_LEAST_GAIN = 1.1


class Repetition:
    """The place at which the end of a sequence stood before; costs a few dictionary accesses per token.

    length: how many of the last tokens are the same there, from 3 to _LONGEST; 0 if there is no such place.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._end = (-1, -1, -1)
        self._places: dict[tuple[int, int, int], int] = {}  # where three tokens were followed by something last
        self._next = 0
        self.length = 0

    def __len__(self) -> int:
        return len(self._ids)

    def foretells(self, token: int) -> bool:
        """Return whether this token followed there."""
        return self.length > 0 and self._ids[self._next] == token

    def append(self, token: int) -> None:
        """Go on with a token: at the same place if it came there too, else at the latest one that fits."""
        follows = self.foretells(token)
        self._places[self._end] = len(self._ids)
        self._end = (self._end[1], self._end[2], token)
        self._ids.append(token)
        if follows:
            self._next += 1
            self.length = min(self.length + 1, _LONGEST)
        else:
            self._next = self._places.get(self._end, 0)
            self.length = self._common(self._next) if self._next else 0

    def continuation(self, count: int) -> list[int]:
        """Return the `count` tokens that followed there; after the end of the sequence they repeat from there."""
        ids, start = self._ids, self._next
        period = len(ids) - start
        return [ids[start + i % period] for i in range(count)]

    def _common(self, place: int) -> int:
        """Return how many tokens before a place equal those at the end of the sequence, _LONGEST at most."""
        ids, length = self._ids, 0
        while length < min(place, _LONGEST) and ids[place - length - 1] == ids[-length - 1]:
            length += 1
        return length


class Lookup:
    """Proposes tokens. Earlier answers, and how often guesses were right, are kept for later ones.

    So the same question about a camera's next picture often gets its answer in a few steps.
    """

    def __init__(self, ends: Collection[int] = ()) -> None:
        """ends: ids after which an answer does not go on."""
        self._ends = ends
        self._trust = list(_FIRST_TRUST)  # by length of the match: how likely its next token comes again
        self._cost = _FIRST_COST  # of each token more in a step, in steps of one token
        self._step_s = 0.0
        self._seen = Repetition()

    def start(self, prompt: IntArray, known: int) -> None:
        """Begin an answer after a prompt, of which `known` tokens were computed (and so seen) before."""
        if len(self._seen) > _MOST_SEEN:
            self.forget()
        fresh = min(known, max(len(prompt) - _SEEN_AGAIN, 0)) if len(self._seen) else 0
        for token in prompt[fresh:].tolist():
            self._seen.append(token)

    def append(self, token: int) -> None:
        """Go on with a token of the answer."""
        if length := self._seen.length:
            self._trust[length] += _TRUST_RATE * (self._seen.foretells(token) - self._trust[length])
        self._seen.append(token)

    def propose(self, limit: int) -> IntArray:
        """Return at most `limit` tokens that may come next; often none."""
        if not self._seen.length:
            return _NOTHING
        count = self._best_count(min(limit, MOST))
        if not count:
            return _NOTHING
        found = self._seen.continuation(count)
        length = next((i for i, token in enumerate(found) if token in self._ends), count)
        return np.array(found if length == count else found[: self._best_count(length)], np.int64)

    def forget(self) -> None:
        """Drop all earlier text."""
        self._seen = Repetition()

    def report(self, count: int, seconds: float) -> None:
        """Learn how long a step of `count` tokens took."""
        if count == 1:
            self._step_s = _towards(self._step_s or seconds, seconds)
        elif self._step_s:
            self._cost = _towards(self._cost, max((seconds / self._step_s - 1) / (count - 1), _LEAST_COST))

    def _best_count(self, limit: int) -> int:
        """Return the number of tokens to propose that makes the expected tokens per cost of a step largest."""
        length = self._seen.length
        best, gain = 0, 1.0
        taken = likely = 1.0
        for count in range(1, limit + 1):
            likely *= self._trust[min(length + count - 1, _LONGEST)]
            taken += likely
            if taken / (1 + self._cost * count) <= gain:
                break  # each token more is less likely than the one before: from here on it only falls
            best, gain = count, taken / (1 + self._cost * count)
        return best if gain > _LEAST_GAIN else 0


def _towards(known: float, seen: float) -> float:
    """Return a moving average, in which a step that was held up counts twice the usual at most."""
    return known + _COST_RATE * (min(seen, 2 * known) - known)
