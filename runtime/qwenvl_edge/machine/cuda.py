"""CUDA through cuda-python: device memory, pinned staging, a stream, captured graphs. Knows nothing of models.

cuda.bindings.runtime is called directly: since CUDA 12.6 (JetPack 6) every function returns its error code and then its
values. Only GPU 0 is used; CUDA_VISIBLE_DEVICES chooses which one that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.memory import available_bytes

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
ALIGNMENT = 256  # bytes; TensorRT asks for it of every bound address, and cudaMalloc returns such addresses


class Cuda:
    """The GPU.

    name: as CUDA reports it. compute_capability: 10 * major + minor. integrated: CPU and GPU share one memory (Jetson).
    """

    def __init__(self, api: Any):
        self.api = api
        properties = self.call("read the GPU's properties", api.cudaGetDeviceProperties, 0)
        self.name = properties.name.rstrip(b"\0").decode(errors="replace")
        self.compute_capability = 10 * properties.major + properties.minor
        self.integrated = bool(properties.integrated)

    @classmethod
    def open(cls) -> Cuda:
        """Open the first GPU.

        Raises:
            BackendError: cuda-python is not installed, or there is no GPU or driver that it can use.
        """
        try:
            from cuda.bindings import runtime as api
        except ImportError:
            raise BackendError(
                "CUDA is reached through cuda-python, which is not installed; run: pip install 'qwenvl-edge[cuda]'"
            ) from None
        _, driver = api.cudaDriverGetVersion()
        if not driver:
            raise BackendError("there is no NVIDIA driver on this machine, so nothing can run on a GPU.")
        error, count = api.cudaGetDeviceCount()
        if error != api.cudaError_t.cudaSuccess or not count:
            reason = "no GPU is visible" if error == api.cudaError_t.cudaSuccess else describe(api, error)
            have = f"{driver // 1000}.{driver % 1000 // 10}"
            raise BackendError(
                f"CUDA cannot use a GPU here ({reason}); the driver takes programs up to CUDA {have}: install "
                f"cuda-python for it (pip install 'cuda-bindings=={driver // 1000}.*') and check nvidia-smi."
            )
        return cls(api)

    def free_bytes(self) -> int:
        """Free memory of the GPU; where CPU and GPU share one memory, also what the system would free for a process."""
        free = int(self._query("read how much memory is free", self.api.cudaMemGetInfo)[0])
        return max(free, available_bytes() or 0) if self.integrated else free

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a CUDA function and return its value; the message of an error says that CUDA could not `what`.

        Raises:
            BackendError: this call failed, or an earlier one did: CUDA reports errors of queued work late.
        """
        values = self._query(what, function, *arguments)
        return values[0] if values else None

    def _query(self, what: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        values: list[Any]
        error, *values = function(*arguments)
        if error != self.api.cudaError_t.cudaSuccess:
            raise BackendError(f"CUDA could not {what}: {describe(self.api, error)}.")
        return values


def describe(api: Any, error: Any) -> str:
    """Name and meaning of a CUDA error."""
    (_, name), (_, text) = api.cudaGetErrorName(error), api.cudaGetErrorString(error)
    return f"{name.decode()}, {text.decode()}"


class DeviceMemory:
    """`nbytes` of the GPU's memory at `address`, freed with this object."""

    def __init__(self, cuda: Cuda, nbytes: int):
        self.nbytes = nbytes
        self.address = int(cuda.call(f"reserve {nbytes:,} bytes", cuda.api.cudaMalloc, max(nbytes, ALIGNMENT)))
        weakref.finalize(self, cuda.api.cudaFree, self.address)


class Staging:
    """A buffer in two places: pinned memory `host` (an array of bytes), and `address`, where the GPU sees it.

    On a GPU with a memory of its own these are two buffers, and upload and download copy between them. Where CPU and
    GPU share one memory they are the same bytes, and nothing is copied.
    """

    def __init__(self, cuda: Cuda, nbytes: int):
        api = cuda.api
        what = f"reserve {nbytes:,} bytes of pinned memory"
        size = max(nbytes, ALIGNMENT)
        pointer = int(cuda.call(what, api.cudaHostAlloc, size, api.cudaHostAllocMapped))
        weakref.finalize(self, api.cudaFreeHost, pointer)
        self.host: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        self._device: DeviceMemory | None = None
        if cuda.integrated:
            self.address = int(cuda.call("map pinned memory", api.cudaHostGetDevicePointer, pointer, 0))
        else:
            self._device = DeviceMemory(cuda, size)
            self.address = self._device.address

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, int], int]:
        """Write arrays one after the other; return the GPU's address of each, and how many bytes they take."""
        addresses, end = {}, 0
        for name, array in arrays.items():
            addresses[name] = self.address + end
            self.host[end : end + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return addresses, end

    def view(self, shape: tuple[int, ...], start: int = 0) -> FloatArray:
        """The float32 array of `shape` from byte `start` on: a view, which the next call overwrites."""
        array: FloatArray = self.host[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)
        return array

    def upload(self, stream: Stream, nbytes: int) -> None:
        """Queue the copy of the first `nbytes` bytes to the GPU."""
        if self._device is not None:
            stream.upload(self.address, self.host[:nbytes])

    def download(self, stream: Stream, nbytes: int) -> None:
        """Queue the copy of the first `nbytes` bytes to the host, which may read them after `synchronize`."""
        if self._device is not None:
            stream.download(self.host[:nbytes], self.address)


class Stream:
    """A queue of work for the GPU, done in order; it does not wait for CUDA's legacy default stream."""

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self._api = api = cuda.api
        self._stream = cuda.call("make a stream", api.cudaStreamCreateWithFlags, api.cudaStreamNonBlocking)
        self.handle = int(self._stream)
        weakref.finalize(self, api.cudaStreamDestroy, self._stream)

    def synchronize(self) -> None:
        """Wait until all queued work is done. Raises BackendError if some of it failed."""
        self._cuda.call("finish the work on the GPU", self._api.cudaStreamSynchronize, self._stream)

    def wait_for(self, other: int) -> None:
        """Make later work on this stream wait for the work that is queued now on another, given by its handle."""
        api, call = self._api, self._cuda.call
        event = call("make an event", api.cudaEventCreateWithFlags, api.cudaEventDisableTiming)
        try:
            call("mark another stream", api.cudaEventRecord, event, other)
            call("wait for another stream", api.cudaStreamWaitEvent, self._stream, event, 0)
        finally:
            api.cudaEventDestroy(event)  # CUDA frees it when nothing waits for it any more

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Synchronise after the block, also if it fails half-way: queued work still uses the memory of the call."""
        try:
            yield
        except BackendError:
            with contextlib.suppress(BackendError):  # the first error is the one to report
                self.synchronize()
            raise
        self.synchronize()

    def upload(self, target: int, source: npt.NDArray[Any]) -> None:
        """Queue the copy of a contiguous array to the GPU; pinned memory must not change until `synchronize`."""
        self._copy(target, source.ctypes.data, source.nbytes, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, target: npt.NDArray[Any], source: int) -> None:
        """Queue the copy to a contiguous array in pinned memory, which may be read after `synchronize`."""
        self._copy(target.ctypes.data, source, target.nbytes, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], *, rows: int, row_bytes: int) -> None:
        """Queue the copy of `rows` rows of `row_bytes` bytes; target and source are (address, bytes between rows)."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        copy = self._api.cudaMemcpy2DAsync
        if row_bytes:
            self._cuda.call("copy", copy, *target, *source, row_bytes, rows, kind, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy between two addresses that the GPU sees: its own memory, or mapped memory of the host."""
        default = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._cuda.call("copy", self._api.cudaMemcpyAsync, target, source, nbytes, default, self._stream)

    def clear(self, address: int, nbytes: int) -> None:
        """Queue filling memory of the GPU with zeros."""
        self._cuda.call("clear memory", self._api.cudaMemsetAsync, address, 0, nbytes, self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on this stream, without running it.

        Raises:
            BackendError: part of it cannot be captured, or CUDA makes no graph of it. The stream is as good as before.
        """
        api, call = self._api, self._cuda.call
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("begin a capture", api.cudaStreamBeginCapture, self._stream, mode)
        try:
            with _no_collection():
                try:
                    work()
                except BackendError:
                    api.cudaStreamEndCapture(self._stream)
                    raise
                graph = call("end a capture", api.cudaStreamEndCapture, self._stream)
            return Graph(self._cuda, self._stream, graph)
        except BackendError:
            api.cudaGetLastError()  # else a later call would report it
            raise

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        if nbytes:
            self._cuda.call("copy", self._api.cudaMemcpyAsync, target, source, nbytes, kind, self._stream)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: freeing memory of the GPU would end a capture of the same thread."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Graph:
    """Captured work of a stream, queued again by one launch instead of one per kernel."""

    def __init__(self, cuda: Cuda, stream: Any, graph: Any):
        self._cuda = cuda
        self._stream = stream
        try:
            self._executable = cuda.call("instantiate a graph", cuda.api.cudaGraphInstantiate, graph, 0)
        finally:
            cuda.api.cudaGraphDestroy(graph)
        weakref.finalize(self, cuda.api.cudaGraphExecDestroy, self._executable)

    def launch(self) -> None:
        """Queue the captured work on its stream."""
        self._cuda.call("launch a graph", self._cuda.api.cudaGraphLaunch, self._executable, self._stream)
