"""Frames in a GPU's memory, and of other libraries, become pictures: on the stand-in for CUDA."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge import FrameSource
from qwenvl_edge.backends.cuda.device import Cuda, DeviceMemory, Staging, Stream
from qwenvl_edge.backends.cuda.frames import frame_array
from qwenvl_edge.errors import FrameError, ImageError
from qwenvl_edge.inputs.pictures import load_picture
from support.device_frames import PIXELS, Exported, frame, put
from support.standin import plans
from support.standin.machine import Machine


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    plans.install(monkeypatch, Machine())
    return Cuda.open()


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


def test_a_dlpack_frame_in_device_memory_is_read_when_its_producer_is_through(cuda):
    legacy = 1
    memory = DeviceMemory(cuda, PIXELS.nbytes + 64)

    def ready():  # the producer puts its work on the stream that it was asked for
        source = np.ascontiguousarray(PIXELS)
        kind = cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        args = (memory.address + 64, source.ctypes.data, source.nbytes, kind, legacy)
        cuda.call("copy", cuda.api.cudaMemcpyAsync, *args)

    tensor = Exported(memory.address + 64, offset=64, ready=ready)
    np.testing.assert_array_equal(load_picture(tensor).pixels, PIXELS)
    assert tensor.asked_for == [legacy]


def test_a_dlpack_frame_whose_rows_lie_apart(cuda):
    padded = np.zeros((5, 32), np.uint8)
    padded[:, :21] = PIXELS.reshape(5, 21)
    stream = Stream(cuda)
    memory = put(cuda, padded, stream)
    stream.synchronize()
    np.testing.assert_array_equal(load_picture(Exported(memory.address, strides=(32, 3, 1))).pixels, PIXELS)
    with pytest.raises(ImageError, match="picture is a GPU frame with strides"):
        load_picture(Exported(memory.address, strides=(21, 1, 7)))
    with pytest.raises(ImageError, match=r"picture is a GPU frame of <f4 \[5, 7, 3\]; give uint8"):
        load_picture(Exported(memory.address, code=2, bits=32))


def test_an_interface_that_knows_no_streams(cuda):
    """Version 2: DLPack is asked where there is it, else CUDA's default stream is waited for."""
    memory = DeviceMemory(cuda, PIXELS.nbytes)
    fill = cuda.api.cudaMemcpyAsync
    kind = cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
    fill(memory.address, PIXELS.ctypes.data, PIXELS.nbytes, kind, 1)
    np.testing.assert_array_equal(load_picture(frame(memory.address, version=2)).pixels, PIXELS)
    both = Exported(memory.address)
    both.__cuda_array_interface__ = frame(memory.address, version=2).__cuda_array_interface__
    np.testing.assert_array_equal(load_picture(both).pixels, PIXELS)
    assert both.asked_for == [1]
    both.__cuda_array_interface__["version"] = 3
    np.testing.assert_array_equal(load_picture(both).pixels, PIXELS)
    assert both.asked_for == [1]


def test_a_frame_of_another_library_on_the_cpu():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.from_numpy(PIXELS.copy())
    assert np.shares_memory(frame_array(tensor, "frame"), tensor.numpy())
    picture = load_picture(tensor, channel_order="bgr")
    np.testing.assert_array_equal(picture.pixels, PIXELS[..., ::-1])
    tensor.zero_()
    assert picture.pixels.any()  # a copy: the library may reuse the memory
    with pytest.raises(ImageError, match="dtype float32; scale it to"):
        load_picture(tensor.float())


def test_what_dlpack_cannot_bring(cuda):
    with pytest.raises(ImageError, match=r"picture cannot be read through DLPack \(device type 7\): "):
        load_picture(Exported(4096, device=7))  # Vulkan
    with pytest.raises(ImageError, match="cannot be read: CUDA could not find the frame"):
        load_picture(Exported(1 << 53))


def test_a_camera_may_put_frames_of_the_gpu(cuda):
    stream, source = Stream(cuda), FrameSource()
    memory = put(cuda, PIXELS, stream)
    source.put(frame(memory.address, stream=stream.handle))
    memory = None  # it was copied
    np.testing.assert_array_equal(source.take().picture.pixels, PIXELS)
    with pytest.raises(ImageError, match="frame 1 is a list; give a uint8 array"):
        source.put([1])
    with pytest.raises(FrameError):
        source.take(timeout_s=0)
