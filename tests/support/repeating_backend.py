"""A backend without weights whose logits follow from the last token alone, in any number of rows."""

from __future__ import annotations

import numpy as np

from qwenvl_edge.backends.base import Backend, KVCache
from qwenvl_edge.backends.checks import check_copy
from qwenvl_edge.bundle.contract import INPUTS_EMBEDS, LOGITS_INDICES
from support.scripted import FAMILY, MODEL, ids

LETTERS = [ids(letter)[0] for letter in "abcdefg"]


def logits_after(token: int) -> np.ndarray:
    """Logits [V] float32 of noise, in which one of seven letters is the likeliest: a greedy answer repeats itself."""
    logits = np.random.default_rng(token).normal(0, 1, MODEL.vocab_size).astype(np.float32)
    logits[LETTERS[(token + 1) % len(LETTERS)]] += 7
    logits[FAMILY.decodable :] = 99  # unused rows, never to be chosen
    return logits


class RepeatingBackend(Backend):
    """Reads the ids back from their embeddings; asked: (rows, tokens of each, logits of each) of every call."""

    model = MODEL

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def encode(self, picture):
        raise NotImplementedError

    def new_cache(self, batch, capacity):
        return KVCache(self.model, batch=batch, capacity=capacity)

    def copy_cache(self, source, target, tokens, *, row=0):
        check_copy(source, target, tokens, row)
        target.length = max(target.length, tokens)

    def _decode(self, cache, inputs, pictures, length):
        tokens = inputs[INPUTS_EMBEDS][:, :, 0].astype(np.int64) // self.model.hidden_size
        wanted = inputs[LOGITS_INDICES]
        self.asked.append((*tokens.shape, wanted.shape[1]))
        rows = [[logits_after(int(row[i])) for i in each] for row, each in zip(tokens, wanted, strict=True)]
        return np.array(rows, np.float32).reshape(*wanted.shape, self.model.vocab_size)

    def _clear(self, cache):
        raise AssertionError("its logits are finite")
