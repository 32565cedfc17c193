"""What stands at each position of a prompt, as numbers that can be compared: the key to computed prefixes.

A text position's key is its token id. A picture's rows take their keys from the digest of its pixels, so that two
prompts share a prefix only as far as words and pictures are the same. Object identities and paths play no part.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt

from qwenvl_edge.inputs.prompt import Prompt

IntArray = npt.NDArray[np.int64]


def content_keys(prompt: Prompt, image_tokens: int) -> IntArray:
    """Keys [T] int64: ids of text, and negative numbers drawn from its digest for each row of a picture."""
    keys: IntArray = prompt.ids.copy()
    for start, picture in zip(prompt.image_starts, prompt.pictures, strict=True):
        keys[start : start + image_tokens] = _picture_keys(picture.digest, image_tokens)
    return keys


@functools.lru_cache(maxsize=64)  # the pictures of a conversation come again with every question
def _picture_keys(digest: str, count: int) -> IntArray:
    noise = hashlib.shake_256(digest.encode()).digest(8 * count)
    keys: IntArray = np.frombuffer(noise, "<i8") | np.iinfo(np.int64).min
    return keys


def common_prefix(a: IntArray, b: IntArray) -> int:
    """How many leading elements of two arrays are equal."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length
