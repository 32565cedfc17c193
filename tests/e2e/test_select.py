"""Which backend is taken, and what is said about it."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.cli import main
from qwenvl_edge.errors import BackendError, BundleError, ContextError, QwenVLError
from support.dialects import RUNNABLE
from support.standin import plans
from support.standin.machine import Machine

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Bundle:
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def planned(bundle, monkeypatch) -> Bundle:
    """A bundle with a plan for the stand-in, which is installed."""
    plans.write_plan(bundle)
    plans.install(monkeypatch, Machine())
    return bundle


def backend_of(engine: QwenVLEngine):
    return engine._selection.backend


def test_a_bundle_without_plans_runs_on_the_cpu_and_says_why(bundle, monkeypatch):
    monkeypatch.setattr("qwenvl_edge.backends.select.driver_absent", lambda: False)
    engine = QwenVLEngine(bundle, threads=1, max_context=64)
    assert isinstance(backend_of(engine), OnnxRuntimeBackend)
    assert engine.describe() == (
        f"ONNX Runtime {onnxruntime.__version__} on the CPU (because the bundle has no TensorRT plan (`qwenvl build "
        f"{bundle.path}` makes one); ONNX Runtime {onnxruntime.__version__} is installed without CUDA; for a GPU run: "
        "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]')"
    )


def test_without_a_driver_nothing_is_said_of_gpus_but_that(bundle, monkeypatch):
    monkeypatch.setattr("qwenvl_edge.backends.select.driver_absent", lambda: True)
    assert QwenVLEngine(bundle, threads=1, max_context=64).describe() == (
        f"ONNX Runtime {onnxruntime.__version__} on the CPU (because there is no NVIDIA driver on this machine)"
    )
    with pytest.raises(BackendError, match="has no TensorRT plan"):  # all of it for those who ask for a GPU
        QwenVLEngine(bundle, device="cuda")


def test_a_plan_comes_first(planned):
    engine = QwenVLEngine(planned)
    assert isinstance(backend_of(engine), TensorRTBackend)
    assert engine.describe() == 'TensorRT 10.3.0.30 on Stand-in (sm_87), plan "local": vision fp32, decoder fp32'
    assert engine.max_context == plans.LIMITS.max_context
    ask = {"message": "What is it?", "images": [PICTURE], "max_new_tokens": 6, "do_sample": False}
    assert engine.chat(**ask).raw_text == QwenVLEngine(planned, threads=1, device="cpu").chat(**ask).raw_text


@pytest.mark.parametrize(
    ("machine", "options", "match"),
    [
        (Machine(capability=(8, 6)), {}, "local was built for sm_87, but this GPU is sm_86"),
        (Machine(), {"version": "11.0.0.1"}, "built by tensorrt 10.3.0.30, but tensorrt 11.0.0.1 is installed"),
        (Machine(total_bytes=1 << 18), {}, "KV cache on a GPU, but 0.00 GB are free there"),
        (Machine(driver=0), {}, "there is no NVIDIA driver on this machine"),
        (Machine(driver=11080), {}, "cudaErrorInsufficientDriver"),
    ],
)
def test_a_plan_that_cannot_run_here_is_passed_over(bundle, monkeypatch, machine, options, match):
    plans.write_plan(bundle)
    plans.install(monkeypatch, machine, **options)
    engine = QwenVLEngine(bundle, threads=1, max_context=64)
    assert isinstance(backend_of(engine), OnnxRuntimeBackend)
    assert match in engine.describe()
    with pytest.raises(BackendError, match=match):
        QwenVLEngine(bundle, backend="tensorrt")


def test_a_damaged_plan_is_not_passed_over(planned):
    path = planned.path / "plans" / "local" / "vision.plan"
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(BundleError, match="truncated or altered"):
        QwenVLEngine(planned)
    assert isinstance(backend_of(QwenVLEngine(planned, device="cpu", max_context=64)), OnnxRuntimeBackend)


def test_without_cuda_python(planned, monkeypatch):
    monkeypatch.setitem(plans.sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-python, which is not installed; run: pip install 'qwenvl-edge\[cuda"):
        QwenVLEngine(planned, backend="tensorrt")


def test_without_tensorrt(planned, monkeypatch):
    monkeypatch.setitem(plans.sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="TensorRT is not installed, which the bundle's plans need"):
        QwenVLEngine(planned, backend="tensorrt")


def test_names_that_do_not_exist(bundle):
    with pytest.raises(BackendError, match="the backend 'torch' is unknown; this version has 'auto', 'tensorrt', 'on"):
        QwenVLEngine(bundle, backend="torch")
    with pytest.raises(QwenVLError, match="device is 'tpu'; it must be one of 'auto', 'cuda', 'cpu'"):
        QwenVLEngine(bundle, device="tpu")
    with pytest.raises(BackendError, match='"tensorrt" runs on GPUs only'):
        QwenVLEngine(bundle, backend="tensorrt", device="cpu")


def test_a_gpu_that_onnx_runtime_cannot_use(bundle, monkeypatch):
    with pytest.raises(BackendError, match="is installed without CUDA; for a GPU run: pip uninstall"):
        QwenVLEngine(bundle, backend="onnxruntime", device="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendError, match="computes in fp32, but ONNX Runtime's attention takes fp16 or bf16"):
        QwenVLEngine(bundle, backend="onnxruntime", device="cuda")


def test_limits_of_the_plan_are_those_of_the_engine(planned):
    with pytest.raises(ContextError, match=r'max_context is 600; TensorRT .*plan "local".* takes 1 to 512 tokens'):
        QwenVLEngine(planned, max_context=600)
    engine = QwenVLEngine(planned)
    options = {"max_new_tokens": 3, "do_sample": False}
    alone = [engine.chat(f"{i}?", **options).raw_text for i in range(5)]
    replies = engine.chat_many([f"{i}?" for i in range(5)], max_batch=8, **options)  # the plan takes 3
    assert [reply.raw_text for reply in replies] == alone


def test_the_command_line_says_what_runs(planned, capsys):
    options = ["--greedy", "--max-new-tokens", "2"]
    assert main(["chat", str(planned.path), "Hi", "--backend", "tensorrt", *options]) == 0
    assert 'qwenvl: TensorRT 10.3.0.30 on Stand-in (sm_87), plan "local"' in capsys.readouterr().err
    assert main(["chat", str(planned.path), "Hi", "--backend", "onnxruntime", "--device", "cpu", *options]) == 0
    assert capsys.readouterr().err == f"qwenvl: ONNX Runtime {onnxruntime.__version__} on the CPU\n"
    assert main(["chat", str(planned.path), "Hi", *options]) == 0
    assert capsys.readouterr().err == ""
