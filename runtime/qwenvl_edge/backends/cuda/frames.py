"""Frames of other libraries: found through the CUDA Array Interface, version 3, or DLPack, and read by the CPU.

A frame that the CPU can read (managed or mapped memory, as camera libraries of boards with unified memory use) is seen
where it lies; one in the GPU's own memory is copied once, without PyTorch or CuPy. Backends on a GPU take frames
without that copy: cuda_pictures.py.
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.cuda.device import Cuda
from qwenvl_edge.errors import BackendError, ImageError

_CUDA, _MANAGED = 2, 13  # DLDeviceType
_LEGACY_STREAM = 1  # a producer makes its frame ready on this one, CUDA's default stream, where it is asked to
_DLPACK_ERRORS = (BackendError, BufferError, RuntimeError, TypeError, ValueError)
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


@dataclass(frozen=True)
class DeviceFrame:
    """Pixels that CUDA has: uint8 `shape` [H, W] or [H, W, channels] at `address`, rows `pitch` bytes apart.

    stream: whose work they wait for (None: they are ready). owner: keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    pitch: int
    stream: int | None
    owner: Any

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, *channels = self.shape
        return height, width, channels[0] if channels else 1


def is_cuda_frame(frame: Any) -> bool:
    """Whether device_frame can be asked about `frame`: it says that CUDA has its pixels."""
    if isinstance(frame, np.ndarray):
        return False
    return hasattr(frame, "__cuda_array_interface__") or _dlpack_device(frame) == _CUDA


def device_frame(frame: Any, name: str, *, reader: int = _LEGACY_STREAM) -> DeviceFrame:
    """A frame that is_cuda_frame. reader: the stream that DLPack's producer is asked to make it ready for.

    Raises:
        ImageError: it is not uint8 [H, W] or [H, W, channels] with contiguous rows, or DLPack fails.
    """
    interface = getattr(frame, "__cuda_array_interface__", None)
    # Before version 3 the interface does not tell what the frame waits for; DLPack's producer sees to that.
    if interface is not None and (interface.get("version", 0) >= 3 or _dlpack_device(frame) != _CUDA):
        return _checked(interface, name, frame)
    try:
        capsule = frame.__dlpack__(stream=reader)  # alive as long as its pixels are wanted
        interface = _interface(capsule, reader)
    except _DLPACK_ERRORS as error:
        raise _unreadable(name, _CUDA, error) from None
    return _checked(interface, name, capsule)


def frame_array(frame: Any, name: str) -> npt.NDArray[Any]:
    """The pixels of an object that has `__cuda_array_interface__` or `__dlpack__`.

    Waits for what the frame still waits for. The array may be a view, valid as long as the frame is.

    Raises:
        ImageError: in CUDA's memory, it is not uint8 [H, W] or [H, W, channels] with contiguous rows, or it cannot be
            reached; or it lies on another kind of device. `name` is the picture's.
    """
    if is_cuda_frame(frame):
        found = device_frame(frame, name)
        try:
            return _view(Cuda.open(), found)
        except BackendError as error:
            raise ImageError(f"{name} lies in a GPU's memory and cannot be read: {error}") from None
    device = _dlpack_device(frame)
    try:
        if device == _MANAGED:
            cuda = Cuda.open()
            array = np.from_dlpack(frame)
            cuda.call("wait for the frame", cuda.api.cudaStreamSynchronize, _LEGACY_STREAM)
            return array
        return np.from_dlpack(frame)
    except _DLPACK_ERRORS as error:
        raise _unreadable(name, device, error) from None


def copy_to_host(cuda: Cuda, address: int, pitch: int, rows: npt.NDArray[np.uint8]) -> None:
    """Fill `rows` [height, bytes of a row] from rows in the GPU's memory that are `pitch` bytes apart and ready."""
    height, row_bytes = rows.shape
    kind, target = cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost, rows.ctypes.data
    cuda.call("copy the frame", cuda.api.cudaMemcpy2D, target, row_bytes, address, pitch, row_bytes, height, kind)


def _dlpack_device(frame: Any) -> int | None:
    return int(frame.__dlpack_device__()[0]) if hasattr(frame, "__dlpack_device__") else None


def _unreadable(name: str, device: int | None, error: Exception) -> ImageError:
    return ImageError(f"{name} cannot be read through DLPack (device type {device}): {error}")


def _interface(capsule: Any, stream: int) -> dict[str, Any]:
    """A capsule's tensor as the CUDA Array Interface has it. The capsule is not consumed, and frees what it holds."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes, get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    item = tensor.bits * tensor.lanes // 8
    typestr = f"{'|' if item == 1 else '<'}{_KINDS.get(tensor.code, 'V')}{item}"
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(item * tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    pointer = (tensor.data or 0) + tensor.byte_offset
    found = {"shape": shape, "typestr": typestr, "strides": strides, "data": (pointer, False)}
    return {**found, "version": 3, "stream": stream}


def _checked(interface: Mapping[str, Any], name: str, owner: Any) -> DeviceFrame:
    """The pixels behind a CUDA Array Interface."""
    shape, (pointer, _) = tuple(interface["shape"]), interface["data"]
    if interface["typestr"] != "|u1" or len(shape) not in (2, 3) or not math.prod(shape):
        raise ImageError(f"{name} is a GPU frame of {interface['typestr']} {list(shape)}; give uint8 [H, W, channels].")
    dense = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    pitch, *inner = interface.get("strides") or dense
    if tuple(inner) != dense[1:] or pitch < math.prod(shape[1:]):
        raise ImageError(f"{name} is a GPU frame with strides {interface['strides']}; give one with contiguous rows.")
    stream = interface.get("stream") if interface.get("version", 0) >= 3 else _LEGACY_STREAM
    return DeviceFrame(pointer, shape, pitch, stream, owner)


def _view(cuda: Cuda, frame: DeviceFrame) -> npt.NDArray[np.uint8]:
    """The pixels as an array, where they lie if the CPU can read them there."""
    api = cuda.api
    if frame.stream is not None:
        cuda.call("wait for the frame", api.cudaStreamSynchronize, frame.stream)
    where = cuda.call("find the frame", api.cudaPointerGetAttributes, frame.address)
    kinds = api.cudaMemoryType
    height, row_bytes = frame.shape[0], math.prod(frame.shape[1:])
    if where.type == kinds.cudaMemoryTypeDevice:
        rows = np.empty((height, row_bytes), np.uint8)
        copy_to_host(cuda, frame.address, frame.pitch, rows)
        return rows.reshape(frame.shape)
    address = int(where.hostPointer) if where.type == kinds.cudaMemoryTypeHost else frame.address
    size = (height - 1) * frame.pitch + row_bytes
    data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    inner = (frame.shape[2], 1) if len(frame.shape) == 3 else (1,)
    return np.lib.stride_tricks.as_strided(data, frame.shape, (frame.pitch, *inner))
