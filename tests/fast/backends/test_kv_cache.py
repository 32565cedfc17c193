from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.backends.kv_cache import KVCache, cache_bytes, ntk_alpha, rope_tables
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import ContextError

MODEL = ModelInfo(
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    vocab_size=480,
    seq_length=16,
    max_position_embeddings=512,
    rope_base=10000.0,
    use_dynamic_ntk=True,
    use_logn_attn=True,
    image_size=42,
    image_tokens=4,
    image_start_id=470,
)


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15), (16384, 15)]
)
def test_ntk_alpha_of_the_published_model(length, alpha):
    assert ntk_alpha(length, 2048) == alpha


@given(st.integers(1, 1 << 15), st.integers(1, 4096))
def test_ntk_alpha_never_shrinks(length, seq_length):
    assert 1 <= ntk_alpha(length, seq_length) <= ntk_alpha(length + 1, seq_length)


@pytest.mark.parametrize("alpha", [1, 3, 7])
def test_rope_tables_equal_the_published_ones(tiny_checkpoint, alpha):
    golden = np.load(tiny_checkpoint / "golden_text.npz")
    cos, sin = rope_tables(64, 64, 10000.0, float(alpha))
    assert cos.dtype == sin.dtype == np.float32
    for name, table in (("cos", cos), ("sin", sin)):
        expected = golden[f"rope.alpha{alpha}.{name}"]
        np.testing.assert_allclose(np.concatenate([table, table], axis=-1), expected, atol=5e-7)


def test_alpha_is_chosen_by_the_prompt_and_kept():
    cache = KVCache(MODEL, batch=1, capacity=64)
    cache.reset(16)
    assert cache.ntk_alpha == 1.0
    plain = cache.rope_cos
    cache.length = 40  # decode went past seq_length: the factor stays that of the prompt
    assert cache.ntk_alpha == 1.0
    cache.reset(17)
    assert (cache.length, cache.ntk_alpha) == (0, 3.0)
    assert not np.array_equal(cache.rope_cos, plain)
    cache.reset(10)
    assert cache.ntk_alpha == 1.0
    np.testing.assert_array_equal(cache.rope_cos, plain)


def test_a_kept_prefix_survives_only_the_same_tables():
    cache = KVCache(MODEL, batch=1, capacity=64)
    cache.reset(16)
    cache.length = 16
    cache.reset(12, keep=10)
    assert cache.length == 10
    cache.reset(12, keep=40)
    assert cache.length == 10  # what is not there cannot be kept
    cache.reset(17, keep=10)
    assert cache.length == 0


def test_memory_of_a_cache():
    assert cache_bytes(MODEL, 64) == 2 * 2 * 4 * 4 * 32 * 64


def test_without_dynamic_ntk_alpha_is_one():
    cache = KVCache(replace(MODEL, use_dynamic_ntk=False), batch=1, capacity=64)
    cache.reset(60)
    assert cache.ntk_alpha == 1.0


def test_a_prompt_beyond_the_capacity_says_by_how_much():
    cache = KVCache(MODEL, batch=1, capacity=64)
    with pytest.raises(ContextError, match="70 tokens, 6 more than"):
        cache.reset(70)
