"""A backend without weights whose logits follow from the last token alone, in any number of rows."""

from __future__ import annotations

import numpy as np

from qwenvl_edge.backends.base import Backend, check_copy, check_tokens
from qwenvl_edge.backends.kv_cache import KVCache
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

    def encode_images(self, pixel_values):
        raise NotImplementedError

    def new_cache(self, batch, capacity):
        return KVCache(self.model, batch=batch, capacity=capacity)

    def copy_cache(self, source, target, tokens, *, row=0):
        check_copy(source, target, tokens, row)
        target.length = max(target.length, tokens)

    def decode(self, cache, inputs_embeds, position_ids, write_indices, logits_indices, pictures=()):
        check_tokens(
            self.model,
            cache,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            write_indices=write_indices,
            logits_indices=logits_indices,
        )
        tokens = inputs_embeds[:, :, 0].astype(np.int64) // self.model.hidden_size
        self.asked.append((*tokens.shape, logits_indices.shape[1]))
        cache.length = int(write_indices.max()) + tokens.shape[1]
        rows = [[logits_after(int(row[i])) for i in wanted] for row, wanted in zip(tokens, logits_indices, strict=True)]
        return np.array(rows, np.float32).reshape(*logits_indices.shape, self.model.vocab_size)
