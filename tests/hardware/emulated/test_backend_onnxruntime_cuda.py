"""The driver of ONNX Runtime's CUDA provider, on the stand-in; tests/hardware/gpu runs the real one."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend
from qwenvl_edge.errors import BackendError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.machine.cuda import Stream
from support.decoding import assert_close, decode, pictured, rotary
from support.device_frames import frame, put
from support.standin import nvrtc, onnxruntime_cuda, plans
from support.standin.machine import Machine

HIDDEN, SIZE = 256, 56


@pytest.fixture(scope="module")
def bundle(tiny_exports):
    """In fp16, which is what attention takes on a GPU; ONNX Runtime's CPU computes it too."""
    return tiny_exports("fp16")


@pytest.fixture(scope="module")
def reference(bundle):
    return OnnxRuntimeBackend(bundle, threads=1)


@pytest.fixture
def open_backend(bundle, monkeypatch):
    def open_it(**options):
        machine = Machine()
        plans.install(monkeypatch, machine)
        onnxruntime_cuda.install(monkeypatch, machine, **options)
        return OnnxRuntimeCudaBackend(bundle), machine

    return open_it


@pytest.mark.parametrize("refuses_capture", [False, True])
def test_calls_of_every_kind(open_backend, reference, refuses_capture):
    backend, _ = open_backend(refuses_capture=refuses_capture)
    assert ("CUDA graph a token" in backend.description) != refuses_capture
    logits = []
    for side in (backend, reference):
        one, batch = side.new_cache(1, 48), side.new_cache(3, 40)
        found = [decode(side, one, 9), decode(side, one, 1), decode(side, one, 1, seed=1)]
        assert decode(side, one, 4, wanted=[]).shape[1] == 0
        found += [decode(side, one, 5, wanted=range(5)), decode(side, one, 1, write=12, seed=2)]
        for row, tokens in enumerate((3, 13, 8)):
            side.copy_cache(one, batch, tokens, row=row)
        steps = [decode(side, batch, 1, write=[3 + i, 13 + i, 8 + i], seed=i) for i in range(4)]
        found += [row[None] for step in steps for row in step]
        last = side.rows(batch, 1, 2)
        found += [row[None] for row in decode(side, last, 1, write=[17, 12], seed=9)]
        logits.append(np.concatenate(found, axis=1))
    assert_close(*logits)


def test_pictures(open_backend, reference):
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    backend, _ = open_backend()
    assert_close(backend.encode_pixels(pixels), reference.encode_pixels(pixels))


def test_features_stay_on_the_gpu(open_backend, reference):
    assert_close(*(pictured(backend) for backend in (open_backend()[0], reference)))


@pytest.mark.skipif(bool(nvrtc.missing()), reason=f"kernels are not emulated here: {nvrtc.missing()}")
def test_a_frame_in_the_gpu_s_memory_stays_there(open_backend, bundle):
    backend, machine = open_backend()
    engine, stream = QwenVLEngine(bundle, backend=backend, max_context=512), Stream(backend.cuda)
    pixels = np.random.default_rng(4).integers(0, 256, (61, 87, 3), np.uint8)
    memory = put(backend.cuda, pixels, stream)
    source = frame(memory.address, pixels.shape, stream=stream.handle)
    options = {"do_sample": False, "max_new_tokens": 4}
    replies = [engine.chat("What is it?", images=[image], **options) for image in (source, pixels)]
    assert replies[0].raw_text == replies[1].raw_text
    (picture,) = replies[0].pictures
    assert isinstance(picture, DevicePicture)
    taken = [machine.block_range(address) for address in (memory.address, picture.address)]
    assert not set(taken) & set(machine.downloads)
    on_host = load_picture(pixels)
    kept = [backend.encode(each) for each in (picture, on_host)]
    places = [machine.block_range(features.memory.address) for features in kept]
    np.testing.assert_array_equal(*map(machine.view, places))
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_a_token_reserves_nothing_and_waits_once(open_backend):
    backend, machine = open_backend()
    cache = backend.new_cache(1, 32)
    for _ in range(2):
        decode(backend, cache, 1)
    machine.counts.clear()
    for _ in range(4):
        decode(backend, cache, 1)
    assert machine.counts == {"enqueues": 4, "copies": 8, "synchronizations": 4}


def test_the_memory_of_a_cache_is_that_of_its_type(open_backend):
    backend, _ = open_backend()
    model = backend.model
    assert backend.cache_bytes(32) == 2 * model.num_layers * model.num_kv_heads * model.head_dim * 32 * 2  # fp16


def test_after_nan(open_backend, reference):
    backend, _ = open_backend()
    cache = backend.new_cache(1, 32)
    broken, zeros = np.full((1, 1, HIDDEN), np.nan, np.float32), np.zeros((1, 1), np.int64)
    with pytest.raises(BackendError, match="the logits hold NaN"):
        backend.decode(cache, broken, rotary(backend, zeros[0], 1), zeros[0], zeros)
    expected = decode(reference, reference.new_cache(1, 32), 3)
    assert_close(decode(backend, cache, 3), expected)


def test_several_tokens_of_a_batch_behind_a_prefix(open_backend):
    backend, _ = open_backend()
    cache = backend.new_cache(2, 16)
    decode(backend, cache, 3)
    with pytest.raises(BackendError, match="takes 2 tokens after a non-empty cache at batch 1 only, not 2"):
        decode(backend, cache, 2)


def test_the_engine_takes_it_before_the_cpu(open_backend, bundle):
    open_backend()
    engine = QwenVLEngine(bundle, max_context=64)
    assert engine.describe() == (
        f"ONNX Runtime {onnxruntime.__version__} on Stand-in (sm_87), a CUDA graph a token (because the bundle has no "
        f"TensorRT plan (`qwenvl build {bundle.path}` makes one))"
    )
    options = {"do_sample": False, "max_new_tokens": 4}
    on_cpu = QwenVLEngine(bundle, device="cpu", max_context=64, threads=1)
    assert engine.chat("Hi", **options).raw_text == on_cpu.chat("Hi", **options).raw_text


def test_a_provider_that_does_not_start(open_backend, bundle, monkeypatch):
    open_backend()
    monkeypatch.setattr(onnxruntime_cuda.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendError, match=r"could not start on the GPU; install the CUDA .*onnxruntime-gpu\[cuda,cudnn"
    ):
        OnnxRuntimeCudaBackend(bundle)


def test_the_libraries_that_pip_installed_are_loaded_first(open_backend, monkeypatch, capsys):
    """What ONNX Runtime prints then is no output of ours; it is in the error if the GPU cannot be used."""
    order = []

    def preload():
        order.append("preloaded")
        sys.stdout.write("Failed to load libcudnn.so.9: not found\nPlease follow https://...\n")

    def providers(_):
        order.append("opened")
        return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime_cuda.InferenceSession, "get_providers", providers)
    with pytest.raises(
        BackendError, match=r"not start on the GPU \(Failed to load libcudnn.so.9: not found\); install"
    ):
        open_backend()
    assert order[:2] == ["preloaded", "opened"]
    assert capsys.readouterr().out == ""
