"""ONNX Runtime's CUDA provider for the stand-in: sessions that run on the machine's memory, bound by address.

Captured graphs behave as ONNX Runtime documents them: the second run under a gpu_graph_id is recorded, and nothing that
is bound may change afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort

from support.standin.graph import OnnxGraph
from support.standin.machine import Machine, Operation, Range, UndefinedBehaviorError

CUDA = "CUDAExecutionProvider"
HOST_INPUTS = {"total_sequence_length"}  # GroupQueryAttention's kernel reads it there
_NUMPY = {np.float32: np.float32, np.int32: np.int32, np.int64: np.int64, np.bool_: np.bool_, 10: np.float16}


@dataclass
class IOBinding:
    bound: dict[str, tuple] = field(default_factory=dict)
    host: dict[str, np.ndarray] = field(default_factory=dict)

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.bound[name] = (_NUMPY[element_type], tuple(shape), buffer_ptr)

    bind_output = bind_input

    def bind_cpu_input(self, name, array):
        self.host[name] = array.copy()


class InferenceSession:
    machine: Machine
    refuses_capture = False

    def __init__(self, path, options, providers):
        ((name, settings),) = providers
        assert name == CUDA and settings["device_id"] == "0"
        self._stream = int(settings["user_compute_stream"])
        self._captures = settings.get("enable_cuda_graph") == "1"
        if self._captures and self.refuses_capture:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self._graph = OnnxGraph(path, {})
        self._runs: dict[str, list[dict]] = {}

    def get_providers(self):
        return [CUDA, "CPUExecutionProvider"]

    def get_inputs(self):
        return self._graph.inputs

    def get_outputs(self):
        return self._graph.outputs

    def io_binding(self):
        return IOBinding()

    def run_with_iobinding(self, binding, options):
        tensors = self._graph.tensors
        if missing := set(tensors) - set(binding.bound) - set(binding.host):
            raise RuntimeError(f"not bound: {missing}")
        if wrong := set(binding.bound) & HOST_INPUTS | set(binding.host) - HOST_INPUTS:
            raise RuntimeError(f"bound on the wrong side, so ONNX Runtime would copy: {wrong}")
        for name, (dtype, shape, _) in binding.bound.items():
            if dtype != tensors[name].numpy or len(shape) != len(tensors[name].shape):
                raise RuntimeError(f"Unexpected input data type or rank for {name}")
        if self._captures:
            self._check_capture(binding, options.get_run_config_entry("gpu_graph_id"))
        host = {name: array.copy() for name, array in binding.host.items()}
        shapes = {name: shape for name, (_, shape, _) in binding.bound.items() if tensors[name].is_input}
        shapes |= {name: array.shape for name, array in host.items()}
        sizes = self._graph.sizes(shapes)
        places = {name: Range(address, sizes[name]) for name, (_, _, address) in binding.bound.items()}
        reads = [place for name, place in places.items() if tensors[name].is_input]
        writes = [place for name, place in places.items() if not tensors[name].is_input]
        machine = self.machine
        machine.counts["enqueues"] += 1

        def run() -> None:
            device = {name: machine.view(place) for name, place in places.items()}
            self._graph.run(device | {name: array.view(np.uint8) for name, array in host.items()}, shapes)

        machine.put(self._stream, Operation("run_with_iobinding", reads, writes, run))

    def _check_capture(self, binding, graph: str) -> None:
        if graph == "-1":
            return
        runs = self._runs.setdefault(graph, [])
        runs.append(binding.bound | {name: array.tolist() for name, array in binding.host.items()})
        if len(runs) > 1 and runs[-1] != runs[-2]:
            raise UndefinedBehaviorError(
                "a captured graph is replayed with other shapes, addresses or values on the host"
            )


def install(monkeypatch, machine: Machine, *, refuses_capture: bool = False) -> None:
    """Give the installed ONNX Runtime a CUDA provider."""
    session = type("Session", (InferenceSession,), {"machine": machine, "refuses_capture": refuses_capture})
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    plain = ort.InferenceSession

    def open_session(path, options=None, providers=()):
        is_cuda = any(not isinstance(provider, str) for provider in providers)
        return (session if is_cuda else plain)(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", open_session)
