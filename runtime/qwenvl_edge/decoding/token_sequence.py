"""The ids of one sequence, prompt and answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Sequence:
    """Ids that grow by one a sampled token, up to one more than the cache holds (the last one needs no room there).

    prompt_length: how many of them are the prompt. reused: how many of these were computed before.
    """

    def __init__(self, prompt: IntArray, capacity: int, *, reused: int = 0) -> None:
        self._ids = np.empty(capacity + 1, np.int64)
        self._ids[: len(prompt)] = prompt
        self._length = len(prompt)
        self.capacity = capacity
        self.prompt_length = len(prompt)
        self.reused = reused

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> IntArray:
        """The ids so far (a view)."""
        return self._ids[: self._length]

    @property
    def full(self) -> bool:
        """Whether the cache has no room for another token."""
        return self._length > self.capacity

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self._ids[self._length] = token
        self._length += 1
