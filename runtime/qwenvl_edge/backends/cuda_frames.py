"""Frames of other libraries as arrays: through the CUDA Array Interface, version 3, or DLPack.

A frame that the CPU can read (managed or mapped memory, as camera libraries of boards with unified memory use) is seen
where it lies; one in the GPU's own memory is copied once, without PyTorch or CuPy.
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.cuda_device import Cuda
from qwenvl_edge.errors import BackendError, ImageError

_CUDA, _MANAGED = 2, 13  # DLDeviceType
_LEGACY_STREAM = 1  # a producer makes its frame ready on this one, CUDA's default stream, where it is asked to
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode, as the letters of type strings


class _DLTensor(ctypes.Structure):
    """What a capsule named "dltensor" begins with (dlpack.h)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null where dense
        ("byte_offset", ctypes.c_uint64),
    )


def frame_array(frame: Any, name: str) -> npt.NDArray[Any]:
    """The pixels of an object that has `__cuda_array_interface__` or `__dlpack__`.

    Waits for what the frame still waits for. The array may be a view, valid as long as the frame is.

    Raises:
        ImageError: in CUDA's memory, it is not uint8 [H, W] or [H, W, channels] with contiguous rows, or it cannot be
            reached; or it lies on another kind of device. `name` is the picture's.
    """
    if hasattr(frame, "__cuda_array_interface__"):
        return _device_array(frame.__cuda_array_interface__, name)
    device = int(frame.__dlpack_device__()[0])
    try:
        if device == _CUDA:
            capsule = frame.__dlpack__(stream=_LEGACY_STREAM)  # alive until its pixels are copied
            return _device_array(_interface(capsule), name)
        if device == _MANAGED:
            cuda = Cuda.open()
            array = np.from_dlpack(frame)
            cuda.call("wait for the frame", cuda.api.cudaStreamSynchronize, _LEGACY_STREAM)
            return array
        return np.from_dlpack(frame)
    except (BackendError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(f"{name} cannot be read through DLPack (device type {device}): {error}") from None


def _interface(capsule: Any) -> dict[str, Any]:
    """A capsule's tensor as the CUDA Array Interface has it. The capsule is not consumed, and frees what it holds."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes, get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    item = tensor.bits * tensor.lanes // 8
    typestr = f"{'|' if item == 1 else '<'}{_KINDS.get(tensor.code, 'V')}{item}"
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(item * tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    pointer = (tensor.data or 0) + tensor.byte_offset
    return {"shape": shape, "typestr": typestr, "strides": strides, "data": (pointer, False), "stream": _LEGACY_STREAM}


def _device_array(interface: Mapping[str, Any], name: str) -> npt.NDArray[np.uint8]:
    """The pixels behind a CUDA Array Interface."""
    shape, (pointer, _) = tuple(interface["shape"]), interface["data"]
    if interface["typestr"] != "|u1" or len(shape) not in (2, 3) or not math.prod(shape):
        raise ImageError(f"{name} is a GPU frame of {interface['typestr']} {list(shape)}; give uint8 [H, W, channels].")
    height, row_bytes = shape[0], math.prod(shape[1:])
    dense = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    pitch, *inner = interface.get("strides") or dense
    if tuple(inner) != dense[1:] or pitch < row_bytes:
        raise ImageError(f"{name} is a GPU frame with strides {interface['strides']}; give one with contiguous rows.")
    try:
        rows = _rows(Cuda.open(), pointer, height, row_bytes, pitch, interface.get("stream"))
    except BackendError as error:
        raise ImageError(f"{name} lies in a GPU's memory and cannot be read: {error}") from None
    return np.lib.stride_tricks.as_strided(rows, shape, (rows.strides[0], *inner))


def _rows(
    cuda: Cuda, pointer: int, height: int, row_bytes: int, pitch: int, stream: int | None
) -> npt.NDArray[np.uint8]:
    """[height, row_bytes] at `pointer`, where it lies if the CPU can read it."""
    api = cuda.api
    if stream is not None:
        cuda.call("wait for the frame", api.cudaStreamSynchronize, stream)
    where = cuda.call("find the frame", api.cudaPointerGetAttributes, pointer)
    kinds = api.cudaMemoryType
    if where.type == kinds.cudaMemoryTypeDevice:
        rows = np.empty((height, row_bytes), np.uint8)
        kind = api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = rows.ctypes.data
        cuda.call("copy the frame", api.cudaMemcpy2D, target, row_bytes, pointer, pitch, row_bytes, height, kind)
        return rows
    address = int(where.hostPointer) if where.type == kinds.cudaMemoryTypeHost else pointer
    size = (height - 1) * pitch + row_bytes
    data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return np.lib.stride_tricks.as_strided(data, (height, row_bytes), (pitch, 1))
