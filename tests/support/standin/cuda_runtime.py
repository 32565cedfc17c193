# ruff: noqa: N801, N802, N803, N815 - the names are those of the real module
"""cuda.bindings.runtime for the stand-in: every function returns its error code and then its values."""

from __future__ import annotations

import functools
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np

from support.standin.machine import CaptureError, Machine, Operation, Range


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaMemoryType(IntEnum):
    cudaMemoryTypeHost = 1
    cudaMemoryTypeDevice = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class _Handle:
    def __init__(self, value: int):
        self._value = value

    def __int__(self) -> int:
        return self._value


def make_module(machine: Machine) -> ModuleType:
    """The module for one machine."""
    module = ModuleType("cuda.bindings.runtime")
    for constant in (cudaError_t, cudaMemcpyKind, cudaMemoryType, cudaStreamCaptureMode):
        setattr(module, constant.__name__, constant)
    module.cudaHostAllocMapped = 2
    module.cudaStreamNonBlocking = 1
    module.cudaEventDisableTiming = 2
    api = Runtime(machine)
    for name in dir(api):
        if name.startswith("cuda"):
            setattr(module, name, _returning_errors(getattr(api, name)))
    return module


def _returning_errors(function):
    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except CaptureError:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)

    return call


_OK = cudaError_t.cudaSuccess


class Runtime:
    """The functions, named and called like the real ones."""

    def __init__(self, machine: Machine):
        self._machine = machine

    def cudaDriverGetVersion(self):
        return _OK, self._machine.driver

    def cudaGetDeviceCount(self):
        if self._machine.driver < 12000:
            return cudaError_t.cudaErrorInsufficientDriver, None
        return _OK, 1

    def cudaGetDeviceProperties(self, device):
        machine = self._machine
        major, minor = machine.capability
        name = machine.name.encode().ljust(256, b"\0")
        return _OK, SimpleNamespace(name=name, major=major, minor=minor, integrated=int(machine.integrated))

    def cudaGetErrorName(self, error):
        return _OK, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error):
        return _OK, cudaError_t(error).name.removeprefix("cudaError").lower().encode()

    def cudaGetLastError(self):
        return (_OK,)

    def cudaMemGetInfo(self):
        return _OK, self._machine.free_bytes, self._machine.total_bytes

    def cudaMalloc(self, size):
        address = self._machine.allocate(size)
        return (_OK, address) if address else (cudaError_t.cudaErrorMemoryAllocation, None)

    def cudaFree(self, devPtr):
        self._machine.free(devPtr)
        return (_OK,)

    def cudaHostAlloc(self, size, flags):
        return _OK, self._machine.allocate_pinned(size)

    def cudaHostGetDevicePointer(self, pHost, flags):
        return _OK, pHost

    def cudaFreeHost(self, ptr):
        self._machine.free(ptr)
        return (_OK,)

    def cudaStreamCreateWithFlags(self, flags):
        return _OK, _Handle(self._machine.new_stream())

    def cudaStreamDestroy(self, stream):
        del self._machine.streams[int(stream)]
        return (_OK,)

    def cudaStreamSynchronize(self, stream):
        self._machine.synchronize(int(stream))
        return (_OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        return self._copy(Range(dst, count), Range(src, count), count, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(self, dst, dpitch, src, spitch, width, height, kind, stream):
        if width > min(dpitch, spitch):
            return (cudaError_t.cudaErrorInvalidValue,)
        places = (Range(at, (height - 1) * pitch + width) for at, pitch in ((dst, dpitch), (src, spitch)))
        return self._copy(*places, dpitch, spitch, width, height, kind, stream)

    def cudaMemcpy2D(self, dst, dpitch, src, spitch, width, height, kind):
        source = self._machine.view(Range(src, (height - 1) * spitch + width))
        target = self._machine.host_bytes(dst, (height - 1) * dpitch + width)
        self._machine.downloads.append(Range(src, (height - 1) * spitch + width))
        _rows(target, dpitch, width, height)[:] = _rows(source, spitch, width, height)
        return (_OK,)

    def cudaPointerGetAttributes(self, ptr):
        place = Range(ptr, 1)
        if not self._machine.is_known(place):
            return cudaError_t.cudaErrorInvalidValue, None
        pinned = self._machine.is_pinned(place)
        kind = cudaMemoryType.cudaMemoryTypeHost if pinned else cudaMemoryType.cudaMemoryTypeDevice
        return _OK, SimpleNamespace(type=kind, device=0, devicePointer=ptr, hostPointer=ptr if pinned else None)

    def cudaEventCreateWithFlags(self, flags):
        return _OK, []

    def cudaEventRecord(self, event, stream):
        event[:] = self._machine.mark(int(stream))
        return (_OK,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        self._machine.wait_for(int(stream), event)
        return (_OK,)

    def cudaEventDestroy(self, event):
        event.clear()  # not what waits for it
        return (_OK,)

    def cudaMemsetAsync(self, devPtr, value, count, stream):
        place = Range(devPtr, count)

        def run():
            self._machine.view(place)[:] = value

        self._machine.put(int(stream), Operation("cudaMemsetAsync", [], [place], run))
        return (_OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self._machine.streams[int(stream)].captured = []
        return (_OK,)

    def cudaStreamEndCapture(self, stream):
        found = self._machine.streams[int(stream)]
        operations, found.captured = found.captured, None
        broken, found.broken = found.broken, False
        if broken or not self._machine.capturable:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return _OK, operations

    def cudaGraphInstantiate(self, graph, flags):
        if not self._machine.instantiable:
            return cudaError_t.cudaErrorInvalidValue, None
        return _OK, list(graph)

    def cudaGraphLaunch(self, graphExec, stream):
        self._machine.launch(int(stream), graphExec)
        return (_OK,)

    def cudaGraphDestroy(self, graph):
        graph.clear()
        return (_OK,)

    def cudaGraphExecDestroy(self, graphExec):
        graphExec.clear()
        return (_OK,)

    def _copy(self, target, source, target_pitch, source_pitch, width, height, kind, stream):
        """Queue a copy; its direction must fit the addresses, as with the real function."""
        machine = self._machine
        from_host = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        to_host = kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        machine.counts["copies"] += 1

        def run():
            rows = [
                _rows(machine.view(place), pitch, width, height)
                for place, pitch in ((target, target_pitch), (source, source_pitch))
            ]
            rows[0][:] = rows[1]

        if from_host and not machine.is_known(source):  # pageable: read before the call returns
            if machine.streams[int(stream)].captured is not None:
                raise CaptureError("cudaMemcpyAsync from pageable memory")
            kept = machine.host_bytes(source.address, source.nbytes).copy()

            def run_kept():
                machine.view(target)[:] = kept

            machine.put(int(stream), Operation("a copy from the host", [], [target], run_kept))
            return (_OK,)
        if to_host and not machine.is_pinned(target):
            return (cudaError_t.cudaErrorInvalidValue,)
        if to_host:
            machine.downloads.append(source)
        machine.put(int(stream), Operation("a copy", [source], [target], run))
        return (_OK,)


def _rows(data: np.ndarray, pitch: int, width: int, height: int) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(data, (height, width), (pitch, 1))
