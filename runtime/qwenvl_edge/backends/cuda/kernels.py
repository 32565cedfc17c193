"""Kernels in CUDA C++: compiled by NVRTC for this machine's GPU, launched through CUDA's driver API.

Only functions of cuda.bindings.nvrtc and .driver that exist since CUDA 12.6 are called. The code is loaded as a
library, not as a module: a library's kernels run in the context of the stream, so any thread may launch them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import Cuda, Stream

NVRTC_FIX = (
    "JetPack and the CUDA toolkit have it; for CUDA 13: pip install nvidia-cuda-nvrtc, for 12: nvidia-cuda-nvrtc-cu12"
)


class Kernels:
    """The kernels `names` of a source file, for one GPU.

    Raises:
        BackendError: NVRTC or the driver cannot be used, or the source does not compile; says why in one sentence.
    """

    def __init__(self, cuda: Cuda, source: Path, names: Iterable[str]):
        if problem := nvrtc_problem():
            raise BackendError(f"{problem}.")
        from cuda.bindings import driver, nvrtc

        image = _Compiler(nvrtc).compile(source, cuda.compute_capability)
        self._driver = driver
        self._call("start", driver.cuInit, 0)
        library = self._call(f"load {source.name}", driver.cuLibraryLoadData, image, [], [], 0, [], [], 0)
        weakref.finalize(self, driver.cuLibraryUnload, library)
        self._kernels = {}
        for name in names:
            kernel = self._call(f"find {name}", driver.cuLibraryGetKernel, library, name.encode())
            self._kernels[name] = driver.CUfunction(int(kernel))  # as the documentation of launches requires

    def launch(self, name: str, grid: tuple[int, int], threads: int, stream: Stream, arguments: Iterable[Any]) -> None:
        """Queue a kernel on a stream: blocks of `threads` threads in a `grid`; `arguments` are ctypes values in order.

        Raises:
            BackendError: the driver refused.
        """
        values = list(arguments)
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        kernel, handle = self._kernels[name], self._driver.CUstream(stream.handle)
        blocks = (*grid, 1, threads, 1, 1)
        launch = self._driver.cuLaunchKernel
        self._call(f"launch {name}", launch, kernel, *blocks, 0, handle, ctypes.addressof(pointers), 0)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        error, *values = function(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            _, name = self._driver.cuGetErrorName(error)
            raise BackendError(f"CUDA's driver could not {what}: {name.decode() if name else error}.")
        return values[0] if values else None


def nvrtc_problem() -> str:
    """The reason why kernels cannot be compiled here, as a clause; "" if NVRTC can be loaded."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401

        nvrtc.nvrtcVersion()  # which loads the library
    except (ImportError, OSError, RuntimeError):
        return f"CUDA's run-time compiler NVRTC is not found here ({NVRTC_FIX})"
    return ""


class _Compiler:
    def __init__(self, nvrtc: Any):
        self._nvrtc = nvrtc

    def compile(self, source: Path, capability: int) -> bytes:
        """Machine code for a compute capability, or PTX if NVRTC is older than the GPU."""
        nvrtc = self._nvrtc
        known = [each for each in self._call("list GPUs", nvrtc.nvrtcGetSupportedArchs) if each <= capability]
        if not known:
            raise BackendError(f"CUDA's run-time compiler NVRTC makes no code for sm_{capability}.")
        kind, target = ("CUBIN", f"sm_{capability}") if capability in known else ("PTX", f"compute_{max(known)}")
        text, name = source.read_bytes(), source.name.encode()
        program = self._call(f"read {source.name}", nvrtc.nvrtcCreateProgram, text, name, 0, [], [])
        try:
            options = [f"--gpu-architecture={target}".encode(), b"--std=c++17"]
            (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise BackendError(f"{source.name} does not compile for {target}: {self._first_error(program)}.")
            return self._filled(kind, program)
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _first_error(self, program: Any) -> str:
        log = self._filled("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        return next((line.strip() for line in log.splitlines() if "error" in line), "its log names no error")

    def _filled(self, what: str, program: Any) -> bytes:
        """Read one of NVRTC's outputs; NVRTC writes it into bytes of the caller's."""
        size: int = self._call(f"measure its {what}", getattr(self._nvrtc, f"nvrtcGet{what}Size"), program)
        buffer = b" " * size
        self._call(f"return its {what}", getattr(self._nvrtc, f"nvrtcGet{what}"), program, buffer)
        return buffer

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        error, *values = function(*arguments)
        if error != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, text = self._nvrtc.nvrtcGetErrorString(error)
            raise BackendError(f"NVRTC could not {what}: {text.decode()}.")
        return values[0] if values else None
