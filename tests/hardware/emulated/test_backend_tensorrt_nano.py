"""models/nano through the TensorRT driver on the stand-in: the answers of ONNX Runtime, token for token."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.select import BackendOptions, select_backend
from qwenvl_edge.bundle.contract import (
    INPUTS_EMBEDS,
    LOGITS_INDICES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    WRITE_INDICES,
)
from qwenvl_edge.bundle.engines import PlanLimits
from qwenvl_edge.machine.cuda import Cuda, Stream
from support.bundles import copy_of
from support.device_frames import frame, put
from support.dialects import RUNNABLE
from support.paths import ROOT
from support.patience import PATIENCE_S
from support.standin import nvrtc, plans
from support.standin.machine import Machine

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
NANO = ROOT / "models" / "nano"
PICTURE = NANO / "demo.png"
QUESTIONS = ["Where is the red mug?", "Why?", "How many cars?", "What does it say?", "Describe it.", "What is it?"]
LIMITS = PlanLimits(max_context=1024, max_batch=4, max_images=1, chunk=96)


@pytest.fixture(scope="module")
def bundle(nano_exports, tmp_path_factory):
    bundle = copy_of(nano_exports(), tmp_path_factory.mktemp("planned") / "bundle")
    plans.write_plan(bundle, limits=LIMITS)
    return bundle


@pytest.fixture
def engines(bundle, monkeypatch):
    """The same bundle twice: on the stand-in, and on ONNX Runtime's CPU with its own dialect."""
    plans.install(monkeypatch, Machine())
    return QwenVLEngine(bundle, backend="tensorrt"), QwenVLEngine(
        bundle, backend="onnxruntime", device="cpu", threads=1, max_context=LIMITS.max_context
    )


def same(*replies):
    """Check that all replies are equal; return one of them."""
    first, *others = [(r.raw_text, r.finish_reason, r.stats.new_tokens, r.boxes) for r in replies]
    assert all(other == first for other in others)
    return replies[0]


def test_a_conversation_about_pictures(engines):
    found = [engine.chat("What is in the picture?", images=[PICTURE], do_sample=False) for engine in engines]
    assert len(same(*found).text) > 20
    for question in ("Where is the red mug?", "What does the sign say?", "汽车是什么颜色的?"):
        found = [
            engine.chat(question, history=reply.history, do_sample=False)
            for engine, reply in zip(engines, found, strict=True)
        ]
        same(*found)
    assert found[0].stats.reused_tokens == found[1].stats.reused_tokens > 0


def test_sampled_answers_and_grounding(engines):
    same(*(e.chat("Describe it.", images=[PICTURE], do_sample=True, top_p=0.9, seed=7) for e in engines))
    assert same(*(e.ground(PICTURE, "the red mug") for e in engines)).boxes


@pytest.mark.skipif(bool(nvrtc.missing()), reason=f"kernels are not emulated here: {nvrtc.missing()}")
def test_boxes_in_a_frame_of_the_gpu(engines):
    """A camera's RGBA frame, rows apart, in the GPU's memory: the places and the drawing of the picture file."""
    pixels = np.asarray(Image.open(PICTURE).convert("RGBA"))
    rows = np.zeros((len(pixels), pixels.shape[1] * 4 + 64), np.uint8)
    rows[:, :-64] = pixels.reshape(len(pixels), -1)
    cuda = Cuda.open()
    stream = Stream(cuda)
    memory = put(cuda, rows, stream)
    source = frame(memory.address, pixels.shape, strides=(rows.shape[1], 4, 1), stream=stream.handle)
    found = same(engines[0].ground(source, "the red mug"), engines[1].ground(PICTURE, "the red mug"))
    assert isinstance(found.pictures[0], DevicePicture) and found.boxes
    assert found.draw().tobytes() == engines[1].ground(PICTURE, "the red mug").draw().tobytes()


def test_a_batch(engines):
    questions = ["Where is the red mug?", "What colour is the car?", "How many cars?", "What does it say?", "Why?"]
    items = [{"message": question, "images": [PICTURE]} for question in questions]
    for pair in zip(*(engine.chat_many(items, do_sample=False, max_new_tokens=24) for engine in engines), strict=True):
        same(*pair)


def test_answers_that_come_and_go_together(engines):
    """Rows end and others take their place: parts of one cache are bound as caches of their own."""
    options = {"images": [PICTURE], "do_sample": False, "max_new_tokens": 24}
    with engines[0].batcher(rows=16) as batcher:  # the plan takes 4
        replies = [batcher.submit(question, **options) for question in QUESTIONS]
        for question, reply in zip(QUESTIONS, replies, strict=True):
            assert reply.result(PATIENCE_S).raw_text == engines[1].chat(question, **options).raw_text


def test_an_int8_cache_is_carried_with_its_scales(nano_exports, tmp_path, monkeypatch):
    """Conversations go on in it, batches are copied together, grow and shrink in it."""
    bundle = copy_of(nano_exports(kv_cache="int8"), tmp_path / "bundle")
    plans.write_plan(bundle, limits=LIMITS, plugin="libkvcache.so 2")
    plans.install(monkeypatch, Machine())
    standard = OnnxRuntimeBackend(bundle, threads=1, dialect=STANDARD)
    engines = [QwenVLEngine(bundle, backend=b, max_context=LIMITS.max_context) for b in ("tensorrt", standard)]
    assert engines[0].describe().endswith("decoder fp32, KV cache int8")
    options = {"images": [PICTURE], "do_sample": False, "max_new_tokens": 24}
    alone = [same(*(engine.chat(question, **options) for engine in engines)) for question in QUESTIONS]
    found = [e.chat("Where is it?", history=alone[0].history, do_sample=False) for e in engines]
    assert same(*found).stats.reused_tokens > 0
    for engine in engines:
        with engine.batcher(rows=4) as batcher:
            replies = [batcher.submit(question, **options) for question in QUESTIONS]
            assert [r.result(PATIENCE_S).raw_text for r in replies] == [r.raw_text for r in alone]


def test_a_prompt_longer_than_the_training_length_has_other_tables(bundle, monkeypatch):
    """Dynamic NTK changes the rotary tables at 2,048 tokens; the rows of both are sent."""
    folder = bundle.path / "plans" / "long"
    if not folder.exists():
        plans.write_plan(bundle, "long", limits=PlanLimits(2304, 1, 1, 256))
    plans.change_manifest(bundle.path / "plans" / "local", compute_capabilities=(86,))  # leaves the long one
    plans.install(monkeypatch, Machine())
    options = {"do_sample": False, "max_new_tokens": 8}
    engines = [
        QwenVLEngine(bundle, backend="tensorrt"),
        QwenVLEngine(bundle, backend="onnxruntime", device="cpu", threads=1, max_context=2304),
    ]
    for words in ("red " * 2150, "What is this?", "red " * 2150):
        same(*(engine.chat(words, images=[PICTURE], **options) for engine in engines))


def test_a_captured_step_takes_its_inputs_in_any_order(bundle, monkeypatch):
    """The step holds addresses in the staging block, so the caller's order must not move them."""
    plans.install(monkeypatch, Machine())
    backend = select_backend(BackendOptions(bundle, None, None, LIMITS.chunk), "tensorrt", "cuda").backend
    rng = np.random.default_rng(0)
    hidden, half = backend.model.hidden_size, backend.model.head_dim // 2
    cache = backend.new_cache(1, 64)
    for position in range(4):  # enqueued, captured, replayed, replayed
        inputs = {
            INPUTS_EMBEDS: rng.standard_normal((1, 1, hidden)).astype(np.float32),
            ROPE_COS: np.ones((1, 1, half), np.float32),
            ROPE_SIN: np.zeros((1, 1, half), np.float32),
            QUERY_SCALE: np.ones((1, 1), np.float32),
            WRITE_INDICES: np.array([position]),
            LOGITS_INDICES: np.zeros((1, 1), np.int64),
        }
        expected = backend._decode(cache, inputs, (), position + 1)
        turned = dict(reversed(inputs.items()))
        np.testing.assert_array_equal(backend._decode(cache, turned, (), position + 1), expected)
