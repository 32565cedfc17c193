"""Frames in memory that CUDA manages, as arrays: through the CUDA Array Interface, version 3.

A frame that the CPU can read (managed or mapped memory, as camera libraries of boards with unified memory use) is seen
where it lies; one in the GPU's own memory is copied once, without PyTorch or CuPy.
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.cuda_device import Cuda
from qwenvl_edge.errors import BackendError, ImageError


def frame_array(frame: Any, name: str) -> npt.NDArray[np.uint8]:
    """The pixels of an object that has `__cuda_array_interface__`, [H, W] or [H, W, channels] uint8.

    Waits for the stream that the frame names. The array may be a view, valid as long as the frame is.

    Raises:
        ImageError: it is not uint8, its rows are not contiguous, or CUDA cannot reach it; `name` is the picture's.
    """
    interface = frame.__cuda_array_interface__
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
