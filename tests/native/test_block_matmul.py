"""The native core's MatMulNBits, as ONNX Runtime runs it, against NumPy; every instruction set gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwenvl_edge import _core
from support.own_operators import OWN, session_of

SHAPES = [(256, 1), (256, 31), (320, 33), (768, 64), (1280, 77)]  # inputs, outputs: whole and broken chunks and panels


@pytest.fixture(autouse=True)
def best_kernels():
    chosen = _core.multiply_variant()
    yield
    _core.use_multiply(chosen)


def session(packed, scales, bias, *, threads=1, **attributes):
    inputs = ["x", "packed", "scales", *(["bias"] if bias is not None else [])]
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain=OWN, **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    tables = {"packed": packed, "scales": scales} | ({"bias": bias} if bias is not None else {})
    initializers = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    graph = helper.make_graph([node], "linear", ends[:1], ends[1:], initializers)
    return session_of(graph, threads)


def matrix(inputs, outputs, bits, block):
    """Integers [outputs, inputs], their packed bytes, and scales [outputs, blocks]."""
    random = np.random.default_rng(inputs + outputs + bits + block)
    integers = random.integers(0, 1 << bits, (outputs, inputs), np.uint8)
    packed = integers if bits == 8 else integers[:, 0::2] | integers[:, 1::2] << 4
    scales = random.uniform(0.001, 0.01, (outputs, inputs // block)).astype(np.float32)
    return integers, packed.reshape(outputs, inputs // block, -1), scales


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (8, 32), (8, 64)])
def test_scales_that_are_halves_give_the_bits_of_floats(bits, block):
    """They are read in half the bytes; one number that float16 has not makes the operator read floats."""
    inputs, outputs = 64 * 13, 205  # more scales than are converted at once, and some left over
    _, packed, scales = matrix(inputs, outputs, bits, block)
    halves = scales.astype(np.float16).astype(np.float32)
    halves[:2] *= np.float32(2**-13)  # subnormal ones
    halves = halves.astype(np.float16).astype(np.float32)
    mixed = halves.copy()
    mixed[-1, -1] *= np.float32(1.01)
    assert mixed[-1, -1] != np.float16(mixed[-1, -1])
    shape = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    runs = [session(packed, each, None, **shape).run for each in (halves, mixed)]
    for rows in (1, 2, 3, 4, 5):
        x = np.random.default_rng(rows).normal(size=(rows, inputs)).astype(np.float32)
        for name in _core.multiply_variants():
            _core.use_multiply(name)
            found, wanted = (run(None, {"x": x})[0] for run in runs)
            np.testing.assert_array_equal(found[:, :-1], wanted[:, :-1], err_msg=name)
            assert (found[:, -1] != wanted[:, -1]).all()  # so they do read their own scales


def expected(x, integers, scales, bits, block, bias):
    """Activations rounded by blocks, products exact, everything else in float64."""
    blocks = x.reshape(len(x), -1, block)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    rounded = np.round(blocks * inverse).astype(np.int64)
    weights = integers.reshape(len(integers), -1, block).astype(np.int64) - (1 << (bits - 1))
    sums = np.einsum("mbi,nbi->mnb", rounded, weights).astype(np.float64)
    y = np.einsum("mnb,nb,mb->mn", sums, scales.astype(np.float64), (most[..., 0] / np.float32(127)).astype(np.float64))
    return y + (0 if bias is None else bias)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128, 256])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_every_variant_equals_numpy(inputs, outputs, bits, block):
    if inputs % block:
        pytest.skip("the block does not divide the inputs")
    integers, packed, scales = matrix(inputs, outputs, bits, block)
    random = np.random.default_rng(0)
    bias = random.normal(size=outputs).astype(np.float32) if outputs % 2 else None
    shape = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    run = session(packed, scales, bias, **shape).run
    for rows in (1, 2, 3, 4, 5, 6, 9, 20):
        x = random.normal(size=(rows, inputs)).astype(np.float32)
        x[0, :block] = 0  # a block of nothing
        found = []
        for name in _core.multiply_variants():
            _core.use_multiply(name)
            found.append(run(None, {"x": x})[0])
            np.testing.assert_array_equal(found[-1], found[0], err_msg=name)
        wanted = expected(x, integers, scales, bits, block, bias)
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max() + 1e-6)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_threads_and_leading_dimensions_change_nothing(rows):
    _, packed, scales = matrix(512, 3000, 4, 128)
    shape = {"K": 512, "N": 3000, "bits": 4, "block_size": 128}
    x = np.random.default_rng(1).normal(size=(2, rows, 512)).astype(np.float32)
    one, two = (session(packed, scales, None, threads=threads, **shape) for threads in (1, 2))
    y = one.run(None, {"x": x})[0]
    assert y.shape == (2, rows, 3000)
    np.testing.assert_array_equal(two.run(None, {"x": x})[0], y)
    np.testing.assert_array_equal(one.run(None, {"x": x.reshape(-1, 512)})[0].reshape(y.shape), y)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 7])
def test_what_is_no_number_stays_none(bits, broken, rows):
    """Rounded to integers it would look like one, and nobody would notice broken weights."""
    _, packed, scales = matrix(512, 40, bits, 128)
    run = session(packed, scales, None, K=512, N=40, bits=bits, block_size=128).run
    x = np.ones((rows, 512), np.float32)
    for name in _core.multiply_variants():
        _core.use_multiply(name)
        for place in (0, 200, 511):
            wrong = x.copy()
            wrong[-1, place] = broken
            y = run(None, {"x": wrong})[0]
            assert np.isnan(y[-1]).all()
            assert np.isfinite(y[:-1]).all()


def test_no_rows():
    _, packed, scales = matrix(256, 64, 8, 32)
    empty = session(packed, scales, None, K=256, N=64, bits=8, block_size=32)
    assert empty.run(None, {"x": np.zeros((0, 256), np.float32)})[0].shape == (0, 64)


@pytest.mark.parametrize(
    "changed", [{"bits": 5}, {"block_size": 48}, {"block_size": 16}, {"K": 250}, {"K": 0}, {"N": 0}], ids=str
)
def test_attributes_that_it_does_not_take(changed):
    _, packed, scales = matrix(256, 64, 8, 32)
    with pytest.raises(Exception, match="take 4 or 8 bits and a block_size that is a power of two"):
        session(packed, scales, None, **{"K": 256, "N": 64, "bits": 8, "block_size": 32} | changed)


def test_tensors_that_do_not_fit():
    _, packed, scales = matrix(256, 64, 8, 32)
    good = session(packed, scales, None, K=256, N=64, bits=8, block_size=32)
    with pytest.raises(Exception, match="x has another width than K"):
        good.run(None, {"x": np.zeros((1, 255), np.float32)})
    bad = session(packed[:, :-1], scales, None, K=256, N=64, bits=8, block_size=32)
    with pytest.raises(Exception, match="the weights have another shape"):
        bad.run(None, {"x": np.zeros((1, 256), np.float32)})
