"""Frames in a GPU's memory become pictures: on the stand-in for CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from standin import plans
from standin.machine import Machine

from qwenvl_edge.backends.cuda_device import Cuda, DeviceMemory, Staging, Stream
from qwenvl_edge.backends.cuda_frames import frame_array
from qwenvl_edge.errors import ImageError
from qwenvl_edge.image import load_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    plans.install(monkeypatch, Machine())
    return Cuda.open()


def frame(address, shape=PIXELS.shape, **others):
    """What a library hands out."""
    interface = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3} | others
    return SimpleNamespace(__cuda_array_interface__=interface)


def put(cuda, rows, stream) -> DeviceMemory:
    """Rows of bytes in the GPU's memory, when the stream gets there."""
    memory = DeviceMemory(cuda, rows.nbytes)
    stream.upload(memory.address, np.ascontiguousarray(rows))
    return memory


def test_a_frame_in_device_memory_is_copied_once_its_stream_is_through(cuda):
    stream = Stream(cuda)
    memory = put(cuda, PIXELS, stream)
    picture = load_picture(frame(memory.address, stream=stream.handle))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.digest == load_picture(PIXELS).digest
    bgr = load_picture(frame(memory.address), channel_order="bgr")
    np.testing.assert_array_equal(bgr.pixels, PIXELS[..., ::-1])


def test_rows_that_lie_apart(cuda):
    stream = Stream(cuda)
    padded = np.zeros((5, 32), np.uint8)
    padded[:, :21] = PIXELS.reshape(5, 21)
    memory = put(cuda, padded, stream)
    apart = frame(memory.address, strides=(32, 3, 1), stream=stream.handle)
    np.testing.assert_array_equal(load_picture(apart).pixels, PIXELS)
    gray = frame(memory.address, (5, 21), strides=(32, 1))
    np.testing.assert_array_equal(frame_array(gray, "frame"), PIXELS.reshape(5, 21))


@pytest.mark.parametrize("pitch", [21, 24])
def test_a_frame_that_the_cpu_can_read_is_not_copied(cuda, pitch):
    staging = Staging(cuda, 5 * pitch)
    staging.host[: 5 * pitch].reshape(5, pitch)[:, :21] = PIXELS.reshape(5, 21)
    array = frame_array(frame(staging.host.ctypes.data, strides=(pitch, 3, 1)), "frame")
    np.testing.assert_array_equal(array, PIXELS)
    assert np.shares_memory(array, staging.host)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"typestr": "<f4"}, r"picture is a GPU frame of <f4 \[5, 7, 3\]; give uint8"),
        ({"shape": (5,)}, r"a GPU frame of \|u1 \[5\]"),
        ({"shape": (0, 7, 3)}, "a GPU frame of"),
        ({"strides": (21, 1, 7)}, r"with strides \(21, 1, 7\); give one with contiguous rows"),
        ({"strides": (-21, 3, 1)}, "with strides"),
        ({"data": (1 << 53, False)}, "lies in a GPU's memory and cannot be read: CUDA could not find the frame"),
    ],
)
def test_frames_that_cannot_be_pictures(cuda, changes, match):
    stream = Stream(cuda)
    memory = put(cuda, PIXELS, stream)
    stream.synchronize()
    with pytest.raises(ImageError, match=match):
        load_picture(frame(memory.address, **changes))


def test_without_cuda(monkeypatch):
    plans.install(monkeypatch, Machine(driver=0))
    with pytest.raises(ImageError, match="cannot be read: there is no NVIDIA driver on this machine"):
        load_picture(frame(4096))
