"""MemoryReader: the limit of reading that shares of the bandwidth are given of."""

from __future__ import annotations

import shutil
import subprocess
import time

import numpy as np
import onnxruntime as ort
import pytest

from qwenvl_edge import _core
from qwenvl_edge.backends.onnxruntime.product_graph import product_graph
from qwenvl_edge.backends.onnxruntime.products import OWN
from support.paths import ROOT

CPP = ROOT / "cpp_ext"
INPUTS, OUTPUTS, BLOCK = 4096, 32768, 128
BYTES = INPUTS * OUTPUTS // 2 + INPUTS * OUTPUTS // BLOCK * 4
THREADS, FEWEST, MOST = 2, 5, 80


@pytest.fixture
def token():
    """Gigabytes per second at which the products of one token read 71 MB of weights."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.register_custom_ops_library(_core.__file__)
    model = product_graph(OWN, INPUTS, OUTPUTS, 4, BLOCK)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.ones((1, INPUTS), np.float32)

    def once():
        started = time.perf_counter()
        session.run(None, {"x": x})
        return BYTES / (time.perf_counter() - started) / 1e9

    return once


def test_a_tokens_products_read_no_faster(token):
    """Each one's best turn counts, in as many turns as other work on the machine makes needful."""
    reader = _core.MemoryReader(BYTES, THREADS)
    products = limit = 0.0
    for turn in range(MOST):
        products, limit = max(products, token()), max(limit, reader.best_gb_s(1))
        if turn >= FEWEST and limit >= products:
            return
    pytest.fail(f"products read {products:.1f} GB/s, the reader at most {limit:.1f}")


def test_it_holds_what_was_asked_for():
    assert _core.MemoryReader(1, 1).bytes == 1 << 18
    assert _core.MemoryReader((1 << 20) + 1, 1).bytes == 5 << 18


@pytest.mark.parametrize(("size", "threads"), [(0, 1), (1, 0)])
def test_nothing_to_read(size, threads):
    with pytest.raises(ValueError, match="needs bytes and threads"):
        _core.MemoryReader(size, threads)


@pytest.mark.parametrize("streams", [1, 4, 8, 16])
def test_each_way_of_reading(streams):
    assert _core.MemoryReader(1 << 20, 1).gb_s(streams, 512) > 0


def test_another_number_of_streams():
    with pytest.raises(ValueError, match="1, 4, 8 or 16"):
        _core.MemoryReader(1, 1).gb_s(3, 0)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no c++")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_it_reads_its_own_memory_alone(tmp_path, sanitizers):
    program = tmp_path / "reader"
    sources = [CPP / "tests" / "memory_reader.cpp", CPP / "simd" / "memory_reader.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}"]
    subprocess.run(
        ["c++", *flags, "-fno-sanitize-recover=all", f"-I{CPP}", "-pthread", "-o", program, *sources], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
