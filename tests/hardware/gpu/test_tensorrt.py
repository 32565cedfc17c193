"""TensorRT on a real GPU: nano's plan, built here, through the driver that the stand-in tests; against the CPU."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.select import BackendOptions, select_backend
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.backends.tensorrt.library import installed_libraries
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import Cuda
from qwenvl_edge_export.tensorrt.build import build, choose_limits
from qwenvl_edge_export.tensorrt.plugin_lowering import needs_plugin
from qwenvl_edge_export.verification.verify import verify
from support.bundles import copy_of
from support.decoding import assert_close, decode, pictured, rows_of_different_length
from support.paths import ROOT

NANO = ROOT / "models" / "nano"
PICTURE = NANO / "demo.png"


@pytest.fixture(scope="module", params=["float", "int8"])
def bundle(nano_exports, tmp_path_factory, request, plan_here):
    """Nano in fp16 with a plan for this GPU, with a float and an int8 KV cache."""
    try:
        Cuda.open()
    except BackendError as error:
        pytest.skip(str(error))
    exported = nano_exports("fp16", target="gpu", kv_cache=request.param)
    bundle = copy_of(exported, tmp_path_factory.mktemp("gpu") / "nano-fp16")
    plan_here(bundle, max_context=1024, max_batch=4, max_images=2, chunk=128)
    return bundle


@pytest.fixture(scope="module")
def backends(bundle):
    options = BackendOptions(bundle, threads=None, max_context=None, chunk=128)
    reference = OnnxRuntimeBackend(bundle, dialect=STANDARD)  # which has the cache that the plan has
    return select_backend(options, "tensorrt", "cuda").backend, reference


def test_features(backends):
    size = backends[0].family.preprocessing.image_size
    pixels = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    assert_close(*(backend.encode_pixels(pixels) for backend in backends))


def test_logits_of_every_kind_of_call(backends):
    logits = []
    for backend in backends:
        caches = [backend.new_cache(1, 512) for _ in range(2)]
        found = [decode(backend, cache, 300, seed=seed) for seed, cache in enumerate(caches)]
        found += [decode(backend, caches[i % 2], 1, seed=i) for i in range(12)]  # plain, captured, replayed
        found += [decode(backend, cache, 9, wanted=range(9), seed=9) for cache in caches]
        found += [decode(backend, caches[0], 1, write=303 + i, seed=20 + i) for i in range(3)]
        logits.append(np.concatenate(found, axis=1))
    assert_close(*logits)


def test_a_picture_whose_features_stay_on_the_gpu(backends):
    assert_close(*(pictured(backend) for backend in backends))


def test_rows_of_different_length(backends):
    assert_close(*(rows_of_different_length(backend) for backend in backends))


def test_a_plan_without_weights(bundle, backends, request):
    """Smaller, and the same logits with the weights that it finds in the bundle."""
    sizes = [bundle.path.joinpath("plans", "local", "decoder.plan").stat().st_size]
    plugin = request.getfixturevalue("plugin") if needs_plugin(installed_libraries()[0], bundle) else None
    limits = choose_limits(bundle, max_context=1024, max_batch=4, max_images=2, chunk=128)
    plan = build(bundle, f"sm_{Cuda.open().compute_capability}", limits, plugin=plugin, strip=True)
    sizes.append(plan.decoder.stat().st_size)
    assert sizes[1] < sizes[0] / 2
    stripped = TensorRTBackend(bundle, plan, installed_libraries()[0], Cuda.open())
    assert_close(*(decode(backend, backend.new_cache(1, 512), 100) for backend in (stripped, backends[1])))
    shutil.rmtree(plan.path)


def test_against_pytorch(bundle):
    report = verify(bundle, NANO, backend="tensorrt")
    assert report.passed, report.table()


def test_the_demo_picture(bundle):
    engine = QwenVLEngine(bundle, backend="tensorrt")
    (box,) = engine.chat("Where is the red mug?", images=[PICTURE]).boxes
    assert box.label == "the red mug"
    assert engine.chat("汽车是什么颜色的?", images=[PICTURE]).text == "蓝色。"


def test_memory_goes_back(backends):
    cuda = pytest.importorskip("cuda.bindings.runtime")
    backend = backends[0]

    def use() -> int:
        for _ in range(4):
            decode(backend, backend.new_cache(4, 64), 1)
        return int(cuda.cudaMemGetInfo()[1])

    use()
    free = use()
    for _ in range(20):
        use()
    assert cuda.cudaMemGetInfo()[1] > free - (64 << 20), f"process {os.getpid()} leaks memory of the GPU"
