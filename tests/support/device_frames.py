"""Frames in a GPU's memory, as other libraries hand them out."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from qwenvl_edge.backends.cuda.device import DeviceMemory

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def frame(address, shape=PIXELS.shape, **others):
    """What a library hands out."""
    interface = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3} | others
    return SimpleNamespace(__cuda_array_interface__=interface)


def put(cuda, rows, stream) -> DeviceMemory:
    """Rows of bytes in the GPU's memory, when the stream gets there."""
    memory = DeviceMemory(cuda, rows.nbytes)
    stream.upload(memory.address, np.ascontiguousarray(rows))
    return memory


class Exported:
    """A tensor that another library hands out through DLPack alone, as dlpack.h lays it out."""

    def __init__(self, address, *, device=2, shape=PIXELS.shape, strides=None, bits=8, code=1, offset=0, ready=None):
        self.device, self.ready, self.asked_for = device, ready, []
        sizes = [*shape, *(strides or ())]
        self._numbers = (ctypes.c_int64 * len(sizes))(*sizes)
        at = ctypes.addressof(self._numbers)
        self._tensor = ctypes.create_string_buffer(64)
        fields = [(0, "<u8", address - offset), (8, "<i4", device), (16, "<i4", len(shape)), (20, "|u1", code)]
        fields += [(21, "|u1", bits), (22, "<u2", 1), (24, "<u8", at), (40, "<u8", offset)]
        fields += [(32, "<u8", at + 8 * len(shape) if strides else 0)]
        for place, kind, value in fields:
            field = np.array([value], kind).tobytes()
            self._tensor[place : place + len(field)] = field

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, stream=None, **_):
        self.asked_for.append(stream)
        if self.ready is not None:
            self.ready()
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
        return new(ctypes.addressof(self._tensor), b"dltensor", None)
