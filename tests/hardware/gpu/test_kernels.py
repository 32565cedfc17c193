"""The plugin's kernels against the op's definition in float64, on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from support.kv_cache_attention import FLOATS, Case, Library, check, random_call

# (tokens, lengths, heads): few rows, rows around the edges of a tile, many rows of many heads; heads with keys of their
# own and groups that share them.
DECODE = [
    (tokens, lengths, heads)
    for tokens in (1, 2, 4)
    for lengths in ((0, 1, 63, 64, 65), (4000, 17, 2048))
    for heads in ((4, 4), (4, 2), (8, 2), (7, 1), (16, 2))
]
PREFILL = [
    (tokens, lengths, heads)
    for tokens in (5, 16, 63, 64, 65, 130)
    for lengths in ((0,), (1, 100, 2000))
    for heads in ((4, 4), (8, 2), (16, 2))
]
WIDE = [(600, (0, 300), (64, 64))]


@pytest.fixture(scope="session")
def kernels(plugin) -> Library:
    return Library(plugin)


@pytest.mark.parametrize("calls", [DECODE, PREFILL, WIDE], ids=["decode", "prefill", "wide"])
@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 104, 128])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_kernels_compute_the_definition(kernels, calls, head_dim, dtype, int8):
    for tokens, lengths, (heads, kv_heads) in calls:
        call = random_call(Case(tokens, lengths, heads, kv_heads, head_dim, 4096, dtype, int8), "cuda")
        check(call, *kernels(call))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_padding_and_full_caches(kernels, dtype, int8):
    case = Case(40, (0, 80, 470), heads=4, kv_heads=4, head_dim=128, capacity=512, dtype=dtype, int8=int8)
    call = random_call(case, "cuda", padded={0: 2, 1: 25})
    check(call, *kernels(call))
    full = Case(4, (510, 3), heads=4, kv_heads=4, head_dim=128, capacity=512, dtype=dtype, int8=int8)
    call = random_call(full, "cuda", padded={0: 2})
    check(call, *kernels(call))


@pytest.mark.parametrize("tokens", [1, 30])
def test_the_same_call_gives_the_same_bits(kernels, tokens):
    call = random_call(Case(tokens, (1000, 3000), heads=8, kv_heads=8, head_dim=128, capacity=4096), "cuda")
    first, _ = kernels(call)
    for _ in range(20):
        again, _ = kernels(call)
        assert torch.equal(first, again)


def test_a_conversation_step_by_step(kernels):
    """A prompt in chunks, then tokens one by one: what was written is what later calls read."""
    whole = random_call(Case(90, (0,), heads=4, kv_heads=4, head_dim=128, capacity=128), "cuda")
    expected, _ = kernels(whole)
    caches, outputs = whole.past, []
    for begin, end in itertools.pairwise((0, 40, 64, 80, *range(81, 91))):
        call = random_call(Case(end - begin, (begin,), heads=4, kv_heads=4, head_dim=128, capacity=128), "cuda")
        call.qkv = whole.qkv[:, begin:end].contiguous()
        call.query_scale = whole.query_scale[:, begin:end].contiguous()
        call.past = caches
        out, caches = kernels(call)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=4e-3, atol=4e-3)
