"""What a call of the TensorRT driver costs, counted by the stand-in: launches, copies, waits and memory."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge.backends.base import Placed
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BackendError
from support.decoding import assert_same, both, decode, embeds, noise, rotary
from support.dialects import RUNNABLE

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
HIDDEN, SIZE = 256, 56


def test_a_token_is_one_launch_and_one_wait(bundle, open_backend):
    backend, machine = open_backend(bundle)
    cache = backend.new_cache(1, 64)
    decode(backend, cache, 5)
    for _ in range(2):
        decode(backend, cache, 1)
    machine.counts.clear()
    for _ in range(10):
        decode(backend, cache, 1)
    assert machine.counts == {"launches": 10, "synchronizations": 10}


def test_nothing_is_reserved_after_the_first_conversation(bundle, open_backend):
    backend, machine = open_backend(bundle)
    cache = backend.new_cache(1, 64)

    def converse():
        backend.encode_pixels(np.zeros((1, 3, SIZE, SIZE), np.float32))
        for tokens in (40, 1, 1, 7, 1):
            decode(backend, cache, tokens, wanted=range(min(tokens, 7)))
        cache.truncate(0)

    converse()
    used = machine.counts["allocations"]
    for _ in range(3):
        converse()
    assert machine.counts["allocations"] == used


def test_memory_goes_back_with_its_cache(bundle, open_backend):
    backend, machine = open_backend(bundle)
    used = machine.used_bytes
    for _ in range(3):
        cache = backend.new_cache(2, 64)
        for _ in range(3):
            decode(backend, cache, 1)
        del cache
    assert machine.used_bytes == used


def test_conversations_share_contexts(bundle, open_backend, reference):
    """A context of a cache that is gone serves the next one, whose memory lies elsewhere."""
    backend, machine = open_backend(bundle)
    caches = [backend.new_cache(1, 64) for _ in range(2)]
    for cache in caches:
        decode(backend, cache, 1)
    made = machine.counts["contexts"]
    for seed in range(4):
        del cache
        caches.pop()
        caches.append(backend.new_cache(1, 64))
        cache, (_, other) = caches[-1], (reference, reference.new_cache(1, 64))
        for step in range(3):
            assert_same(decode(backend, cache, 1, seed=seed + step), decode(reference, other, 1, seed=seed + step))
    assert machine.counts["contexts"] == made
    assert machine.counts["launches"] == 8  # the last two tokens of each conversation


def test_the_memory_of_a_cache_is_the_plans_whole_context(bundle, open_backend):
    backend, machine = open_backend(bundle)
    used = machine.used_bytes
    cache = backend.new_cache(1, 8)
    assert machine.used_bytes - used == backend.cache_bytes(8)
    assert cache.capacity == 8


def test_a_shared_memory_is_not_copied(bundle, open_backend, reference):
    backend, machine = open_backend(bundle, integrated=True)
    (_, cache), other = both(backend, reference)
    expected = [decode(*other, tokens) for tokens in (5, 1, 1, 1)]
    found = [decode(backend, cache, 5)]
    machine.counts.clear()
    found += [decode(backend, cache, 1) for _ in range(3)]
    assert machine.counts["copies"] == 0
    assert_same(np.concatenate(found, axis=1), np.concatenate(expected, axis=1))


def test_kept_features_are_copied_within_the_gpu_only(bundle, open_backend):
    backend, machine = open_backend(bundle)
    features = backend.encode(noise(0))
    cache, used = backend.new_cache(1, 128), machine.used_bytes
    decode(backend, cache, 20)
    machine.counts.clear()
    pictures = [Placed(features, 0, 5, 40)]
    start = np.array([20])
    call = (cache, embeds(backend, 40), rotary(backend, start, 40), start, np.array([[0]]))
    backend.decode(*call, pictures)
    assert machine.counts == {"enqueues": 1, "copies": 3, "synchronizations": 1}  # inputs, features, logits
    for at, first, count in ((1, 0, 40), (0, 250, 7), (-1, 0, 2), (0, 0, 0)):
        with pytest.raises(BackendError, match=r"do not fit 40 tokens and 256 rows"):
            backend.decode(*call, [Placed(features, at, first, count)])
    with pytest.raises(BackendError, match="features of another backend"):
        backend.decode(*call, [Placed(np.zeros((256, HIDDEN), np.float32), 0, 0, 1)])
    del features, pictures
    assert machine.used_bytes < used
