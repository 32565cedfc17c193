"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL through both GPU drivers on the stand-in, against recorded tensors and the CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qwenvl_edge import BackendError, QwenVLEngine, Video
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend
from qwenvl_edge.backends.select import BackendOptions, select_backend
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES, STANDARD
from qwenvl_edge.bundle.engines import PlanLimits
from qwenvl_edge.families.pieces import PixelLimits
from qwenvl_edge.inputs.clips import load_clip
from qwenvl_edge.machine.cuda import Cuda, Stream
from support.bundles import copy_of
from support.decoding import assert_close
from support.device_frames import frame, put
from support.dialects import RUNNABLE
from support.families import (
    FAMILIES,
    GOLDEN,
    conversation_of,
    golden,
    golden_json,
    greedy,
    load,
    picture_file,
    prefilled,
    video_of,
)
from support.standin import nvrtc, onnxruntime_cuda, plans
from support.standin.machine import Machine

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
PROMPTS = ("one", "two", "text", "video2", "video5", "mixed")
LIMITS = PlanLimits(max_context=512, max_batch=3, max_images=2, chunk=40)
emulated = pytest.mark.skipif(bool(nvrtc.missing()), reason=f"kernels are not emulated here: {nvrtc.missing()}")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def exports(name, family_exports):
    return family_exports(name)


@pytest.fixture(scope="module")
def planned(exports, tmp_path_factory):
    """In float32, with a plan that takes 40 tokens a call: prompts are cut, also inside pictures."""
    bundle = copy_of(exports(), tmp_path_factory.mktemp("planned") / "bundle")
    plans.write_plan(bundle, limits=LIMITS)
    return bundle


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    plans.install(monkeypatch, machine)
    return machine


@pytest.fixture
def tensorrt(planned, machine):
    return select_backend(BackendOptions(planned, None, None, LIMITS.chunk), "tensorrt", "cuda").backend


@pytest.fixture
def ort_cuda(exports, machine, monkeypatch):
    """ONNX Runtime's CUDA provider takes fp16 and bf16 only."""
    onnxruntime_cuda.install(monkeypatch, machine)
    return OnnxRuntimeCudaBackend(exports("fp16"))


def test_features_of_a_plan_are_the_recorded_ones(tensorrt, name):
    recorded = golden(name, "vision")
    for letter in "abcdef":
        found = tensorrt.run_vision(load(picture_file(name, letter)).vision_inputs(tensorrt.family))
        np.testing.assert_allclose(found[IMAGE_FEATURES][0], recorded[f"{letter}.features"], rtol=0, atol=1e-5)
        if name == "qwen3_vl":
            deep = found[DEEPSTACK_FEATURES][:, 0]
            np.testing.assert_allclose(deep, recorded[f"{letter}.deepstack"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("integrated", [False, True])
def test_logits_of_a_plan_are_the_recorded_ones(planned, monkeypatch, name, prompt, integrated):
    """Features kept on the GPU and spliced in pieces of 16 tokens, those of deepstack layers too."""
    plans.install(monkeypatch, Machine(integrated=integrated))
    backend = select_backend(BackendOptions(planned, None, None, LIMITS.chunk), "tensorrt", "cuda").backend
    found = prefilled(backend, planned, name, prompt, ())
    np.testing.assert_allclose(found, golden(name, "text")[f"{prompt}.logits"], rtol=0, atol=2e-4)


def test_a_prompt_of_a_plan_may_be_cut_everywhere(tensorrt, planned, name):
    wanted = golden(name, "text")["one.logits"]
    for cut in range(1, len(wanted), 3):
        found = prefilled(tensorrt, planned, name, "one", (cut,))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_onnxruntime_s_provider_computes_as_the_cpu(ort_cuda, exports, name, prompt):
    cpu = OnnxRuntimeBackend(exports("fp16"), threads=1)
    cut = len(golden(name, "text")[f"{prompt}.logits"]) // 2
    assert_close(*(prefilled(each, exports("fp16"), name, prompt, (cut,)) for each in (ort_cuda, cpu)))


def question(name, prompt):
    message, history, system = conversation_of(name, prompt)
    return {"message": message, "history": history, "system": system}


def tokens(reply):
    return [each.id for each in reply.logprobs]


def test_recorded_answers_alone_and_in_a_batch(planned, machine, name):
    """Captured steps with zeros for deepstack layers; rows of a batch have other pictures and other positions."""
    engine = QwenVLEngine(planned, backend="tensorrt")
    wanted = {each: golden_json(name, "meta")["prompts"][each]["greedy"] for each in PROMPTS}
    for prompt in PROMPTS:
        assert tokens(engine.chat(**question(name, prompt), **greedy(name))) == wanted[prompt]
    several = ("one", "video5", "two")
    replies = engine.chat_many([question(name, prompt) for prompt in several], **greedy(name))
    assert [tokens(reply) for reply in replies] == [wanted[prompt] for prompt in several]
    assert machine.counts["launches"] > 0


def test_answers_of_onnxruntime_s_provider(exports, machine, monkeypatch, name):
    onnxruntime_cuda.install(monkeypatch, machine)
    bundle = exports("fp16")
    on_gpu = QwenVLEngine(bundle, backend="onnxruntime", device="cuda")
    on_cpu = QwenVLEngine(bundle, backend="onnxruntime", device="cpu", threads=1)
    assert "a CUDA graph a token" in on_gpu.describe()
    for prompt in ("one", "mixed"):
        replies = [each.chat(**question(name, prompt), **greedy(name)) for each in (on_gpu, on_cpu)]
        assert tokens(replies[0]) == tokens(replies[1])


@emulated
def test_frames_of_the_gpu_stay_there(tensorrt, machine, name):
    """A picture and a clip of frames in the GPU's memory have the features that they have on the host."""
    stream = Stream(tensorrt.cuda)
    clip = video_of(name, "video5")

    def on_gpu(pixels):
        pixels = np.ascontiguousarray(pixels)
        memory = put(tensorrt.cuda, pixels, stream)
        picture = tensorrt.load_frame(frame(memory.address, pixels.shape, stream=stream.handle), "rgb", "frame")
        stream.synchronize()
        smaller = picture.within(PixelLimits(max_pixels=20_000))  # it stays there with other limits
        assert isinstance(picture, DevicePicture) and isinstance(smaller, DevicePicture)
        assert (smaller.digest, smaller.address) == (picture.digest, picture.address)
        return picture

    for source in (load(picture_file(name, "a")).pixels, clip):
        frames = clip.frames if source is clip else [source]
        shown = [
            (Video(each, times=clip.times) if source is clip else each[0])
            for each in ([on_gpu(pixels) for pixels in frames], list(map(load, frames)))
        ]
        machine.downloads.clear()
        found = [tensorrt.encode(as_visual(each)) for each in shown]
        assert all(machine.block_range(each.address) not in machine.downloads for each in pictures_of(shown[0]))
        for pair in itertools.pairwise(found):
            views = [machine.view(machine.block_range(features.memory.address)) for features in pair]
            np.testing.assert_array_equal(*views)


def pictures_of(source):
    return source.frames if isinstance(source, Video) else [source]


def as_visual(source):
    return load_clip(source, lambda picture, _: picture, "clip") if isinstance(source, Video) else source


def test_a_picture_larger_than_the_plan(tensorrt, name):
    """It is refused before a byte of it is written."""
    pixels = np.zeros((900, 900, 3), np.uint8)
    picture = load(pixels).within(PixelLimits(max_pixels=900 * 900))
    with pytest.raises(BackendError, match=r"the plan takes pixel_values up to \[2, .*; give a smaller max_pixels"):
        tensorrt.encode(picture)
    assert len(tensorrt.encode(load(picture_file(name, "a"))))


def test_a_picture_for_which_the_gpu_has_no_room(ort_cuda, machine, name):
    machine.total_bytes = machine.used_bytes + 1000
    picture = load(np.zeros((900, 900, 3), np.uint8)).within(PixelLimits(max_pixels=900 * 900))
    with pytest.raises(BackendError, match=r"tokens takes .* GB to encode, but 0\.00 GB of memory are free"):
        ort_cuda.encode(picture)


def test_memory_goes_back_with_features_and_caches(tensorrt, machine, name):
    tensorrt.encode(load(picture_file(name, "a")))
    used = machine.used_bytes
    for letter in "abcdef":
        features = tensorrt.encode(load(picture_file(name, letter)))
        assert machine.used_bytes > used
        del features
    assert machine.used_bytes == used


def test_a_plan_is_compared_with_pytorch(planned, machine, name):
    from qwenvl_edge_export.verification.verify import verify

    report = verify(planned, GOLDEN / name, backend="tensorrt")
    assert report.passed, report.table()


def test_cuda_is_opened_once_for_a_survey(planned, machine):
    from qwenvl_edge.backends.select import survey

    assert dict(survey(BackendOptions(planned, None, None, 16)))["tensorrt, cuda"] is None
    assert Cuda.open().name == "Stand-in"
