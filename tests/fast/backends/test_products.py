"""The choice between the native core's and ONNX Runtime's matrix products: measured once, then remembered."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from qwenvl_edge import _core
from qwenvl_edge.backends.onnxruntime import products
from qwenvl_edge.backends.onnxruntime.product_graph import MICROSOFT, OWN, product_graph
from qwenvl_edge.backends.onnxruntime.products import Comparison, compare_products


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; each test begins as a new process does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compare_products.cache_clear()
    yield tmp_path / "cache" / "qwenvl-edge" / "products.json"
    compare_products.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """What was measured so far; measuring itself takes no time."""
    calls = []

    def measure(*what):
        calls.append(what)
        return 1.0, 2.0

    monkeypatch.setattr(products, "_measure", measure)
    return calls


@pytest.mark.parametrize("domain", [OWN, MICROSOFT])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
def test_the_graph_is_a_product(domain, bits, block):
    options = ort.SessionOptions()
    options.register_custom_ops_library(_core.__file__)
    session = ort.InferenceSession(
        product_graph(domain, 256, 40, bits, block), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    y = session.run(None, {"x": x})[0]
    low, high, zero = (0x7, 0x3, 8) if bits == 4 else (0x37, 0x37, 128)
    weights = np.tile([low - zero, high - zero], 128) * 0.01
    # 256 activations of up to 4, rounded to 127 steps, err by a third of a step on average.
    np.testing.assert_allclose(y, np.repeat((x @ weights)[:, None], 40, axis=1), rtol=0, atol=np.abs(weights).max())


@pytest.mark.skipif(_core.multiply_variant() == "portable", reason="no kernels but the portable ones")
def test_a_real_measurement_gives_times():
    found = compare_products(4, 128, 1)
    assert found.native_s > 0 and found.onnxruntime_s > 0
    assert found.kernels == _core.multiply_variant()


def test_it_is_measured_once_per_machine_and_form(measured, own_cache):
    for _ in range(2):
        assert compare_products(4, 32, 0) == Comparison(_core.multiply_variant(), 1.0, 2.0)
        compare_products.cache_clear()  # a new process
    assert measured == [(4, 32, 0)]
    compare_products(4, 128, 0)
    compare_products(4, 32, 2)
    assert measured == [(4, 32, 0), (4, 128, 0), (4, 32, 2)]
    assert own_cache.exists() and not list(own_cache.parent.glob("tmp*"))


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', '{"a": ["x", "y"]}', "7"])
def test_a_broken_file_is_measured_again_and_made_whole(measured, own_cache, broken):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(broken)
    compare_products(8, 32, 0)
    compare_products.cache_clear()
    compare_products(8, 32, 0)
    assert len(measured) == 1


def test_a_folder_that_cannot_be_written_changes_nothing(measured, own_cache):
    own_cache.parent.parent.mkdir()
    own_cache.parent.write_text("a file in the folder's place")
    assert compare_products(8, 32, 0).native_is_faster
    assert len(measured) == 1


def test_onnxruntime_is_taken_where_it_is_clearly_faster():
    assert Comparison("avx2", 1.0, 1.0).native_is_faster
    assert Comparison("avx2", 1.04, 1.0).native_is_faster  # it keeps no copy of the weights
    assert not Comparison("avx2", 1.3, 1.0).native_is_faster


def test_a_description_says_which_is_taken():
    assert str(Comparison("avx2", 1.0, 1.2)) == "matrix products by the native core (avx2)"
    faster = "its own matrix products, 1.5 times as fast here as the native core's (avx2)"
    assert str(Comparison("avx2", 1.5, 1.0)) == faster
