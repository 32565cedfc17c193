"""ONNX Runtime's CUDA provider on a real GPU: the numbers of the CPU's fp16, and whether a token is one CUDA graph."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend, check_cuda
from qwenvl_edge.errors import BackendError
from support.decoding import assert_close, decode, pictured, rows_of_different_length
from support.paths import ROOT

NANO = ROOT / "models" / "nano"
PICTURE = NANO / "demo.png"


@pytest.fixture(scope="module")
def bundle(nano_exports):
    bundle = nano_exports("fp16", target="gpu")
    try:
        check_cuda(bundle)
    except BackendError as error:
        pytest.skip(str(error))
    return bundle


@pytest.fixture(scope="module")
def backends(bundle):
    return OnnxRuntimeCudaBackend(bundle), OnnxRuntimeBackend(bundle)


def test_a_token_is_a_cuda_graph(backends):
    assert backends[0].captures, backends[0].description


def test_features(backends):
    size = backends[0].family.preprocessing.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    assert_close(*(backend.encode_pixels(pixels) for backend in backends))


def test_logits_of_prefill_steps_and_verification(backends):
    logits = []
    for backend in backends:
        cache = backend.new_cache(1, 512)
        found = [decode(backend, cache, 300)]
        found += [decode(backend, cache, 1, seed=seed) for seed in range(8)]  # plain, captured, replayed
        found.append(decode(backend, cache, 9, wanted=range(9), seed=9))
        found += [decode(backend, cache, 1, write=304 + i, seed=20 + i) for i in range(3)]
        logits.append(np.concatenate(found, axis=1))
    assert_close(*logits)


def test_a_picture_whose_features_stay_on_the_gpu(backends):
    assert_close(*(pictured(backend) for backend in backends))


def test_rows_of_different_length(backends):
    assert_close(*(rows_of_different_length(backend) for backend in backends))


def test_two_caches_in_turns(backends):
    logits = []
    for backend in backends:
        caches = [backend.new_cache(1, 64) for _ in range(2)]
        for seed, cache in enumerate(caches):
            decode(backend, cache, 5, seed=seed)
        logits.append(np.concatenate([decode(backend, caches[i % 2], 1, seed=i) for i in range(12)], axis=1))
    assert_close(*logits)


def test_the_demo_picture(bundle):
    engine = QwenVLEngine(bundle, backend="onnxruntime", device="cuda")
    (box,) = engine.chat("Where is the red mug?", images=[PICTURE]).boxes
    assert box.label == "the red mug"
    assert engine.chat("汽车是什么颜色的?", images=[PICTURE]).text == "蓝色。"
