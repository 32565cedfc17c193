# ruff: noqa: N802, N803 - the names are those of the real module
"""cuda.bindings.driver for the stand-in: launches kernels of the libraries that its NVRTC makes.

A kernel sees copies of the allocations that its pointers lead into, each with a page behind it that must not be
touched: one that reads or writes too far ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import ModuleType

import numpy as np

from support.standin.machine import Machine, Operation, Range
from support.standin.nvrtc import MAGIC

_LIBC = ctypes.CDLL(None, use_errno=True)
_ALIGNMENT = 16
_PROT_NONE = 0
_MOST = (2**31 - 1, 65_535, 65_535)  # blocks of a grid


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500


@dataclass(frozen=True)
class Kernel:
    name: str
    library: ctypes.CDLL

    @property
    def kinds(self) -> str:
        """One letter a parameter: see kernel_calls.hpp."""
        function = getattr(self.library, f"kinds_{self.name}")
        function.restype = ctypes.c_char_p
        return function().decode()


def make_module(machine: Machine) -> ModuleType:
    """The module for one machine."""
    module = ModuleType("cuda.bindings.driver")
    module.CUresult = CUresult
    api = Driver(machine)
    for name in dir(api):
        if name.startswith("cu"):
            setattr(module, name, getattr(api, name))
    module.CUfunction = module.CUstream = int
    return module


_OK = CUresult.CUDA_SUCCESS


class Driver:
    """The functions, named and called like the real ones. A kernel's handle is its place in a list."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self._kernels: list[Kernel] = []

    def cuInit(self, Flags):
        return (_OK,)

    def cuGetErrorName(self, error):
        return _OK, CUresult(error).name.encode()

    def cuLibraryLoadData(
        self,
        code,
        jitOptions,
        jitOptionsValues,
        numJitOptions,
        libraryOptions,
        libraryOptionValues,
        numLibraryOptions,
    ):
        if not code.startswith(MAGIC):
            return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        return _OK, ctypes.CDLL(os.fsdecode(code.removeprefix(MAGIC).rstrip(b"\0")))

    def cuLibraryUnload(self, library):
        return (_OK,)

    def cuLibraryGetKernel(self, library, name):
        if not hasattr(library, f"call_{name.decode()}"):
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        self._kernels.append(Kernel(name.decode(), library))
        return _OK, len(self._kernels) - 1

    def cuLaunchKernel(
        self,
        f,
        gridDimX,
        gridDimY,
        gridDimZ,
        blockDimX,
        blockDimY,
        blockDimZ,
        sharedMemBytes,
        hStream,
        kernelParams,
        extra,
    ):
        kernel, machine, grid = self._kernels[f], self._machine, (gridDimX, gridDimY, gridDimZ)
        assert (blockDimY, blockDimZ, sharedMemBytes, extra) == (1, 1, 0, 0)
        if blockDimX > 1024 or any(not 1 <= blocks <= most for blocks, most in zip(grid, _MOST, strict=True)):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        values = _values(kernelParams, kernel.kinds)
        pointers = {i: int.from_bytes(values[i], "little") for i, kind in enumerate(kernel.kinds) if kind in "rw"}
        places = {i: machine.block_range(address) for i, address in pointers.items()}
        reads = list(places.values())
        writes = [place for i, place in places.items() if kernel.kinds[i] == "w"]

        def run() -> None:
            with _guarded(machine, reads, writes) as seen:
                held = [seen[places[i]].to_bytes(8, "little") if i in places else v for i, v in enumerate(values)]
                buffers = [ctypes.create_string_buffer(value, len(value)) for value in held]
                array = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
                getattr(kernel.library, f"call_{kernel.name}")(*grid, blockDimX, machine.descending, array)

        machine.put(hStream, Operation(kernel.name, reads, writes, run))
        return (_OK,)


def _values(params: int, kinds: str) -> list[bytes]:
    """The parameters' bytes, which the caller may change once the launch returns."""
    addresses = (ctypes.c_void_p * len(kinds)).from_address(params)
    sizes = [8 if kind in "rw" else int(kind) for kind in kinds]
    return [ctypes.string_at(address, size) for address, size in zip(addresses, sizes, strict=True)]


@contextlib.contextmanager
def _guarded(machine: Machine, places: list[Range], written: list[Range]) -> Iterator[dict[Range, int]]:
    """Addresses of copies of the places, which end where nothing may be touched; what is written is copied back."""
    copies = {place: _guarded_copy(machine.view(place)) for place in set(places)}
    yield {place: copy.ctypes.data for place, copy in copies.items()}
    for place in written:
        machine.view(place)[:] = copies[place]


def _guarded_copy(data: np.ndarray) -> np.ndarray:
    space = -(-(data.nbytes + _ALIGNMENT) // mmap.PAGESIZE) * mmap.PAGESIZE
    room = np.frombuffer(mmap.mmap(-1, space + mmap.PAGESIZE), np.uint8)
    guard = ctypes.c_void_p(room.ctypes.data + space)
    if _LIBC.mprotect(guard, mmap.PAGESIZE, _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    start = (space - data.nbytes) // _ALIGNMENT * _ALIGNMENT
    copy = room[start : start + data.nbytes]
    copy[:] = data
    return copy
