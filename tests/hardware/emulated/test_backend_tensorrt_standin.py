"""The stand-in itself: it has the names of the real APIs and notices what the real ones would not forgive."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import onnx
import pytest

from qwenvl_edge.backends.tensorrt.engine import TensorRTEngine
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Staging, Stream
from support.standin import cuda_driver, cuda_runtime, nvrtc, plans, tensorrt_api
from support.standin.machine import Machine, Range, UndefinedBehaviorError
from support.tensorrt import installed_rtx


def parameters(text: str, name: str) -> list[str]:
    """The parameters in a docstring's signature, without types and self."""
    found = re.search(rf"{name}\((.*?)\)", text.replace("\n", " "))
    parts = [part.strip() for part in re.sub(r"\[[^]]*\]", "", found[1]).split(",")]
    names = [re.split(r"[:=]", part)[0].split()[-1].lstrip("*") for part in parts if part]
    return [name for name in names if name != "self"]


def test_every_cuda_function_is_called_like_the_real_one():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    module = cuda_runtime.make_module(Machine())
    functions = [name for name in dir(cuda_runtime.Runtime) if name.startswith("cuda")]
    assert len(functions) > 20
    for name in functions:
        ours = [p for p in inspect.signature(getattr(cuda_runtime.Runtime, name)).parameters if p != "self"]
        assert ours == parameters(getattr(real, name).__doc__, name), name
    for enum in (module.cudaError_t, module.cudaMemcpyKind, module.cudaMemoryType, module.cudaStreamCaptureMode):
        for member in enum:
            assert int(getattr(getattr(real, enum.__name__), member.name)) == member
    for name in ("cudaHostAllocMapped", "cudaStreamNonBlocking", "cudaEventDisableTiming"):
        assert getattr(module, name) == getattr(real, name)
    assert hasattr(real.cudaPointerAttributes, "devicePointer") and hasattr(real.cudaPointerAttributes, "device")


@pytest.mark.parametrize("ours", [nvrtc.Nvrtc, cuda_driver.Driver])
def test_compiling_and_launching_are_called_like_the_real_ones(ours):
    prefix, module = ("nvrtc", "nvrtc") if ours is nvrtc.Nvrtc else ("cu", "driver")
    real = pytest.importorskip(f"cuda.bindings.{module}", reason="cuda-python is not installed")
    functions = [name for name in dir(ours) if name.startswith(prefix)]
    assert len(functions) > 5
    for name in functions:
        mine = [p for p in inspect.signature(getattr(ours, name)).parameters if p != "self"]
        assert mine == parameters(getattr(real, name).__doc__, name), name
    for member in nvrtc.nvrtcResult if prefix == "nvrtc" else cuda_driver.CUresult:
        assert int(getattr(getattr(real, type(member).__name__), member.name)) == member
    assert prefix == "nvrtc" or int(real.CUfunction(int(real.CUkernel(5)))) == int(real.CUstream(5)) == 5


def test_every_tensorrt_name_is_a_real_one():
    """TensorRT-RTX, which installs without a GPU, has TensorRT's API."""
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    refit = (tensorrt_api.Refitter, tensorrt_api.OnnxParserRefitter)
    cached = (tensorrt_api.IRuntimeConfig, tensorrt_api.IRuntimeCache)
    engine = (tensorrt_api.Runtime, tensorrt_api.ICudaEngine, tensorrt_api.IExecutionContext)
    for cls in (*engine, *refit, *cached):
        for name, member in inspect.getmembers(cls, inspect.isfunction):
            if name.startswith("_"):
                continue
            ours = [p for p in inspect.signature(member).parameters if p != "self"]
            text = getattr(getattr(real, cls.__name__), name).__doc__
            assert (
                ours == parameters(text[text.rfind("1. ") + 1 :] if "Overloaded" in text else text, name)[: len(ours)]
            )
    assert hasattr(real.ICudaEngine, "device_memory_size_v2") and hasattr(real.ICudaEngine, "num_io_tensors")
    for name in ("load_library", "get_creator"):
        ours = list(inspect.signature(getattr(tensorrt_api.IPluginRegistry, name)).parameters)[1:]
        assert ours == parameters(getattr(real.IPluginRegistry, name).__doc__, name)
    for enum in (tensorrt_api.DataType, tensorrt_api.TensorIOMode, tensorrt_api.ExecutionContextAllocationStrategy):
        for member in enum:
            assert int(getattr(getattr(real, enum.__name__), member.name)) == member
    for member in tensorrt_api.Severity:
        assert int(getattr(real.ILogger.Severity, member.name)) == member


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    plans.install(monkeypatch, machine)
    return machine


@pytest.fixture
def cuda(machine) -> Cuda:
    return Cuda.open()


@pytest.fixture
def stream(cuda) -> Stream:
    return Stream(cuda)


def test_the_host_sees_results_only_after_it_has_waited(cuda, stream):
    staging = Staging(cuda, 16)
    staging.host[:] = 7
    staging.upload(stream, 16)
    stream.synchronize()
    staging.host[:] = 0
    staging.download(stream, 16)
    assert not (staging.host[:16] == 7).any()
    stream.synchronize()
    assert (staging.host[:16] == 7).all()


def test_pinned_memory_that_changes_under_a_copy(cuda, stream, machine):
    staging = Staging(cuda, 16)
    staging.upload(stream, 16)
    staging.host[0] = 1
    with pytest.raises(UndefinedBehaviorError, match="pinned memory changed"):
        stream.synchronize()
    machine.streams[stream.handle].pending.clear()


def test_one_memory_on_two_streams(cuda, stream, machine):
    memory, other = DeviceMemory(cuda, 16), Stream(cuda)
    stream.clear(memory.address, 16)
    with pytest.raises(UndefinedBehaviorError, match="one memory on two streams"):
        other.clear(memory.address, 16)
    with pytest.raises(UndefinedBehaviorError, match="is freed that cudaMemsetAsync under way still uses"):
        machine.free(memory.address)
    stream.synchronize()


def test_a_stream_that_waits_for_another(cuda, stream, machine):
    memory, other = DeviceMemory(cuda, 16), Stream(cuda)
    stream.clear(memory.address, 16)
    other.wait_for(stream.handle)
    other.upload(memory.address, np.full(16, 3, np.uint8))
    other.synchronize()  # which takes the first stream along
    assert not machine.streams[stream.handle].pending
    assert (machine.view(Range(memory.address, 16)) == 3).all()
    other.clear(memory.address, 16)
    with pytest.raises(UndefinedBehaviorError, match="one memory on two streams"):
        stream.clear(memory.address, 16)  # nobody told it to wait
    other.synchronize()


def test_memory_that_is_not_there(cuda, stream, machine):
    memory = DeviceMemory(cuda, 256)
    with pytest.raises(UndefinedBehaviorError, match="not inside an allocation"):
        stream.clear(memory.address + 200, 100)
    with pytest.raises(UndefinedBehaviorError, match="not inside an allocation"):
        stream.clear(memory.address - 8, 8)
    with pytest.raises(UndefinedBehaviorError, match="device memory, used as memory of the host"):
        cuda.api.cudaMemcpyAsync(memory.address, (1 << 53) + 256, 8, 1, stream._stream)
    address = memory.address
    del memory
    with pytest.raises(UndefinedBehaviorError, match="not inside an allocation"):
        stream.clear(address, 16)
    with pytest.raises(UndefinedBehaviorError, match="is no allocation"):
        machine.free(address)


def test_memory_is_garbage_at_first(cuda, stream):
    memory, staging = DeviceMemory(cuda, 256), Staging(cuda, 256)
    stream.download(staging.host[:16], memory.address)
    stream.synchronize()
    assert np.isnan(staging.host[:16].view(np.float32)).all()


@pytest.mark.parametrize("forbidden", ["cudaMalloc", "cudaStreamSynchronize"])
def test_calls_that_end_a_capture(cuda, stream, forbidden):
    calls = {"cudaMalloc": lambda: DeviceMemory(cuda, 16), "cudaStreamSynchronize": stream.synchronize}
    with pytest.raises(BackendError, match="CUDA could not"):
        stream.capture(calls[forbidden])
    stream.synchronize()  # and the stream is as good as before


def test_errors_of_cuda_have_their_names(cuda, machine):
    machine.total_bytes = 100
    with pytest.raises(BackendError, match=r"CUDA could not reserve 1,000 bytes: cudaErrorMemoryAllocation, "):
        DeviceMemory(cuda, 1000)


@pytest.fixture
def context(machine, monkeypatch, tmp_path):
    """A context of an engine that computes y = x + x on [N, 64] floats in place of nothing; and its engine's log."""
    shape = ["N", 64]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "double.onnx")
    plan = {
        "onnx": str(tmp_path / "double.onnx"),
        "dimensions": {},
        "profiles": [{"x": [[1, 64], [2, 64], [4, 64]]}],
        "aliases": {},
        "compute_capability": 87,
        "scratch_bytes": 512,
    }
    trt = plans.install(monkeypatch, machine)
    log = Log()
    engine = trt.Runtime(log).deserialize_cuda_engine(tensorrt_api.MAGIC + json.dumps(plan).encode())
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.log = log
    return context


class Log(tensorrt_api.ILogger):
    def __init__(self):
        self.lines: list[str] = []

    def log(self, severity, msg):
        self.lines.append(msg)


def test_a_context_is_set_up_step_by_step(context, cuda, stream):
    x, y, scratch = (DeviceMemory(cuda, 1024) for _ in range(3))

    def refused(why: str) -> bool:
        return not context.execute_async_v3(stream.handle) and why in context.log.lines[-1]

    assert refused("a profile is set")
    with pytest.raises(RuntimeError):
        context.set_optimization_profile_async(1, stream.handle)
    assert context.set_optimization_profile_async(0, stream.handle)
    context.set_device_memory(scratch.address, 100)
    assert refused("device memory is set")
    context.set_device_memory(scratch.address, 512)
    assert refused("the shape of x is set")
    assert not context.set_input_shape("x", (5, 64)) and "satisfyProfile" in context.log.lines[-1]
    assert not context.set_input_shape("y", (2, 64))
    assert context.set_input_shape("x", (2, 64))
    assert refused("the address of x is set")
    assert context.set_tensor_address("x", x.address) and not context.set_tensor_address("z", x.address)
    assert refused("the address of y is set")
    assert context.set_tensor_address("y", y.address)
    assert context.execute_async_v3(stream.handle)
    stream.synchronize()
    assert context.set_optimization_profile_async(0, stream.handle)
    assert refused("the shape of x is set")


def ready(context, cuda, stream, x, y):
    scratch = DeviceMemory(cuda, 512)
    context.scratch = scratch
    context.set_device_memory(scratch.address, 512)
    context.set_optimization_profile_async(0, stream.handle)
    context.set_input_shape("x", (2, 64))
    context.set_tensor_address("x", x)
    context.set_tensor_address("y", y)


def test_it_computes(context, cuda, stream):
    x, y = Staging(cuda, 512), Staging(cuda, 512)
    ready(context, cuda, stream, x.address, y.address)
    x.write({"x": np.arange(128, dtype=np.float32)})
    x.upload(stream, 512)
    assert context.execute_async_v3(stream.handle)
    y.download(stream, 512)
    stream.synchronize()
    np.testing.assert_array_equal(y.view((128,)), 2 * np.arange(128, dtype=np.float32))


def test_an_output_that_is_written_in_place_lies_on_its_input(context, cuda, stream):
    context.engine.aliases = {"y": "x"}
    x, y = DeviceMemory(cuda, 1024), DeviceMemory(cuda, 1024)
    ready(context, cuda, stream, x.address, y.address)
    with pytest.raises(UndefinedBehaviorError, match="y must be bound to the address of x"):
        context.execute_async_v3(stream.handle)
    context.set_tensor_address("y", x.address)
    assert context.execute_async_v3(stream.handle)
    stream.synchronize()


@pytest.mark.parametrize(
    ("offset", "why"),
    [(0, "y overlaps x"), (256, "y overlaps x"), (100, "not a multiple of 256"), (1024, "not inside")],
)
def test_addresses_that_cannot_be(context, cuda, stream, offset, why):
    memory = DeviceMemory(cuda, 1024)
    with pytest.raises(UndefinedBehaviorError, match=why):
        ready(context, cuda, stream, memory.address, memory.address + offset)
        context.execute_async_v3(stream.handle)


def test_a_graph_belongs_to_the_context_as_it_was(context, cuda, stream):
    x, y = DeviceMemory(cuda, 1024), DeviceMemory(cuda, 1024)
    ready(context, cuda, stream, x.address, y.address)

    def enqueue():
        if not context.execute_async_v3(stream.handle):
            raise BackendError("refused")

    with pytest.raises(BackendError, match="refused"):
        stream.capture(enqueue)  # it has not settled on its shapes
    enqueue()
    graph = stream.capture(enqueue)
    graph.launch()
    stream.synchronize()
    context.set_input_shape("x", (3, 64))
    with pytest.raises(UndefinedBehaviorError, match="changed after its work had been captured"):
        graph.launch()


def test_the_real_library_takes_a_mapped_file_and_its_words_reach_the_error(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    library = installed_rtx()
    (tmp_path / "decoder.plan").write_bytes(bytes(4096))
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* could not load the plan .*decoder.plan\": .*Error Code"):
        TensorRTEngine(library, tmp_path / "decoder.plan")
