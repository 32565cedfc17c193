from __future__ import annotations

import pytest

from qwenvl_edge.backends.base import KVCache
from qwenvl_edge.backends.kept import cache_bytes
from qwenvl_edge.errors import ContextError
from support.manifests import make_model
from support.scripted import family_of

MODEL = make_model(hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, vocab_size=480)


@pytest.fixture
def cache():
    return KVCache(MODEL, batch=1, capacity=64)


def positions(length):
    return family_of(256, head_dim=32, seq_length=16).positions(length)


def test_the_key_is_chosen_by_the_prompt_and_kept(cache):
    cache.reset(positions(16))
    assert cache.key == 1.0
    cache.length = 40  # decode went past the length that the factor was chosen for: it stays that of the prompt
    cache.reset(positions(17))
    assert (cache.length, cache.key) == (0, 3.0)


def test_a_kept_prefix_survives_only_an_equal_key(cache):
    cache.reset(positions(16))
    cache.length = 16
    cache.reset(positions(12), keep=10)
    assert cache.length == 10
    cache.reset(positions(12), keep=40)
    assert cache.length == 10  # what is not there cannot be kept
    cache.reset(positions(17), keep=10)
    assert cache.length == 0


def test_memory_of_a_cache():
    assert cache_bytes(MODEL, 64) == 2 * 2 * 2 * 4 * 32 * 64  # of kv heads, not of heads


def test_a_prompt_beyond_the_capacity_says_by_how_much(cache):
    with pytest.raises(ContextError, match="70 tokens, 6 more than"):
        cache.reset(positions(70))
