"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL on a real GPU: both backends against recorded tensors and the CPU's fp16."""

from __future__ import annotations

import pytest

from qwenvl_edge import BackendError, QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend, check_cuda
from qwenvl_edge.backends.select import BackendOptions, select_backend
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES
from qwenvl_edge.machine.cuda import Cuda
from qwenvl_edge_export.verification.verify import verify
from support.bundles import copy_of
from support.decoding import assert_close
from support.families import FAMILIES, GOLDEN, conversation_of, golden, greedy, load, picture_file, prefilled

PROMPTS = ("one", "two", "text", "video2", "video5", "mixed")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def exported(name, family_exports):
    try:
        Cuda.open()
    except BackendError as error:
        pytest.skip(str(error))
    return family_exports(name)("fp16", target="gpu")


@pytest.fixture(scope="module", params=["tensorrt", "onnxruntime"])
def backend(request, exported, tmp_path_factory):
    """The GPU's backend and the bundle that it has opened."""
    if request.param == "onnxruntime":
        try:
            check_cuda(exported)
        except BackendError as error:
            pytest.skip(str(error))
        return OnnxRuntimeCudaBackend(exported), exported
    bundle = copy_of(exported, tmp_path_factory.mktemp("planned") / "bundle")
    request.getfixturevalue("plan_here")(bundle, max_context=512, max_batch=3, max_images=2, chunk=40)
    return select_backend(BackendOptions(bundle, None, None, 40), "tensorrt", "cuda").backend, bundle


def test_features_of_pictures_of_every_size(backend, name):
    recorded = golden(name, "vision")
    for letter in "abcdef":
        inputs = load(picture_file(name, letter)).vision_inputs(backend[0].family)
        found = backend[0].run_vision(inputs)
        assert_close(found[IMAGE_FEATURES][0], recorded[f"{letter}.features"])
        if name == "qwen3_vl":
            assert_close(found[DEEPSTACK_FEATURES][:, 0], recorded[f"{letter}.deepstack"])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_of_pictures_and_clips(backend, exported, name, prompt):
    cut = len(golden(name, "text")[f"{prompt}.logits"]) // 2
    reference = OnnxRuntimeBackend(exported)
    assert_close(*(prefilled(each, exported, name, prompt, (cut,)) for each in (backend[0], reference)))


def test_answers_alone_and_in_a_batch(backend, name):
    """Captured steps, and rows with other pictures; float16 may round another way on a GPU, so both are the GPU's."""
    engine = QwenVLEngine(backend[1], backend=backend[0])
    asked = []
    for prompt in ("one", "video5", "two"):
        message, history, system = conversation_of(name, prompt)
        asked.append({"message": message, "history": history, "system": system})
    alone = [engine.chat(**each, **greedy(name)) for each in asked]
    for reply, other in zip(alone, engine.chat_many(asked, **greedy(name)), strict=True):
        firsts = [[token.id for token in each.logprobs[:2]] for each in (reply, other)]
        assert firsts[0] == firsts[1]


def test_a_plan_against_pytorch(backend, name):
    if isinstance(backend[0], OnnxRuntimeCudaBackend):
        pytest.skip("`qwenvl verify` compares ONNX Runtime's graphs on the CPU")
    report = verify(backend[1], GOLDEN / name, backend="tensorrt")
    assert report.passed, report.table()
