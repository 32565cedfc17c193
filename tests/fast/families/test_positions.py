from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.families.positions import RotaryTable, logn_scale, ntk_factor, stretched_base
from support.scripted import family_of


def plain_tables(capacity, head_dim, base, factor):
    """The tables as one expression: float32 as in the published code, powers in float64."""
    stretched = float(np.float32(base * factor ** (head_dim / (head_dim - 2))))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / (stretched ** exponents.astype(np.float64)).astype(np.float32)
    angles = np.arange(capacity, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize(
    ("length", "factor"), [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15), (16384, 15)]
)
def test_factor_of_the_published_model(length, factor):
    assert ntk_factor(length, 2048) == factor
    assert family_of(2000).positions(length).key == factor


@given(st.integers(1, 1 << 15), st.integers(1, 4096))
def test_the_factor_never_shrinks(length, seq_length):
    assert 1 <= ntk_factor(length, seq_length) <= ntk_factor(length + 1, seq_length)


def test_without_dynamic_ntk_the_factor_is_one():
    assert family_of(2000, use_dynamic_ntk=False).positions(60_000).key == 1.0


@pytest.mark.parametrize("factor", [1, 3, 7])
def test_tables_equal_the_published_ones(tiny_checkpoint, factor):
    golden = np.load(tiny_checkpoint / "golden_text.npz")
    tables = RotaryTable(64, stretched_base(10000.0, float(factor), 64)).rows(0, 64)
    for name, table in zip(("cos", "sin"), tables, strict=True):
        assert table.dtype == np.float32
        expected = golden[f"rope.alpha{factor}.{name}"]
        np.testing.assert_allclose(np.concatenate([table, table], axis=-1), expected, atol=5e-7)


@pytest.mark.parametrize("head_dim", [4, 32, 64, 128])
@pytest.mark.parametrize("length", [2048, 5000, 9000])
def test_rows_are_the_tables_rows_to_the_bit(head_dim, length):
    """Wherever a call begins and however far the table had grown before."""
    factor, capacity = ntk_factor(length, 2048), length + 100
    cos, sin = plain_tables(capacity, head_dim, 10000.0, factor)
    family = family_of(2000, head_dim=head_dim)
    positions = family.positions(length)
    for start, count in ((0, 7), (500, 100), (length, 100), (3, 1), (0, capacity)):
        rows = positions.rows(start, count)
        np.testing.assert_array_equal(rows.cos, cos[None, start : start + count])
        np.testing.assert_array_equal(rows.sin, sin[None, start : start + count])
        assert rows.cos.flags.c_contiguous and rows.sin.flags.c_contiguous


def test_prompts_of_one_factor_share_a_table_that_nobody_can_change():
    family = family_of(2000)
    one, other = family.positions(100).rows(0, 9), family.positions(2000).rows(0, 9)
    assert np.shares_memory(one.cos, other.cos) and not np.shares_memory(one.cos, family.positions(3000).rows(0, 9).cos)
    with pytest.raises(ValueError, match="read-only"):
        one.cos[0] = 2


def test_query_scale():
    """max(1, log(p + 1) / log(seq_length)): 1 up to seq_length tokens, then slowly more."""
    (scale,) = family_of(2000, seq_length=16).positions(40).rows(10, 100).query_scale
    assert scale.dtype == np.float32
    expected = [max(1.0, math.log(p + 1) / math.log(16)) for p in range(10, 110)]
    np.testing.assert_allclose(scale, expected, rtol=3e-7)
    assert (scale[:6] == 1).all() and (np.diff(scale[6:]) > 0).all()
    np.testing.assert_array_equal(scale[50:60], logn_scale(16, 60, 10))
    assert family_of(2000, use_logn_attn=False).positions(40).rows(0, 4).query_scale is None
