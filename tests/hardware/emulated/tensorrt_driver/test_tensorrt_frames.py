"""Camera frames in the GPU's memory are asked about there: a plan on the stand-in, whose NVRTC emulates the kernels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qwenvl_edge import FrameSource, QwenVLEngine
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.machine.cuda import DeviceMemory, Staging, Stream
from support.device_frames import Exported, frame, put
from support.dialects import RUNNABLE
from support.standin import nvrtc

pytestmark = [
    pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder"),
    pytest.mark.skipif(bool(nvrtc.missing()), reason=f"kernels are not emulated here: {nvrtc.missing()}"),
]
PIXELS = np.random.default_rng(4).integers(0, 256, (61, 87, 3), np.uint8)
OPTIONS = {"do_sample": False, "max_new_tokens": 4}
PREPROCESSING = Preprocessing(56, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Camera:
    """Puts frames into the GPU's memory, on a stream of its own that nobody has waited for."""

    def __init__(self, cuda):
        self.cuda, self.stream = cuda, Stream(cuda)

    def take(self, pixels=PIXELS):
        self.memory = put(self.cuda, pixels, self.stream)
        source = frame(self.memory.address, pixels.shape, stream=self.stream.handle)
        source.owner = self, self.memory  # which live as long as the frame
        return source


@pytest.fixture(params=[False, True], ids=["own memory", "shared memory"])
def opened(bundle, open_backend, request):
    backend, machine = open_backend(bundle, integrated=request.param)
    return QwenVLEngine(bundle, backend=backend), backend, machine


@pytest.fixture
def encoded(opened, monkeypatch) -> list:
    """The pictures that are encoded from now on."""
    backend, pictures = opened[1], []
    encode = backend.encode
    monkeypatch.setattr(backend, "encode", lambda picture: pictures.append(picture) or encode(picture))
    return pictures


def came_down(machine, *addresses) -> bool:
    """Whether anything was copied to the host from the allocations at addresses."""
    places = [machine.block_range(address) for address in addresses]
    return any(
        place.address <= down.address < place.address + place.nbytes for down in machine.downloads for place in places
    )


def bytes_of(machine, features) -> bytes:
    return machine.view(machine.block_range(features.memory.address)).tobytes()


def test_a_frame_is_asked_about_where_it_lies(opened, encoded):
    engine, backend, machine = opened
    camera = Camera(backend.cuda)
    reply = engine.chat("What is it?", images=[camera.take()], **OPTIONS)
    (picture,) = reply.pictures
    assert isinstance(picture, DevicePicture) and encoded == [picture]
    assert not came_down(machine, camera.memory.address, picture.address)
    assert reply.raw_text == engine.chat("What is it?", images=[PIXELS], **OPTIONS).raw_text
    assert not isinstance(encoded[1], DevicePicture)
    np.testing.assert_array_equal(np.asarray(reply.draw(0)), PIXELS)
    assert came_down(machine, picture.address)


def test_features_are_those_of_the_pixels_on_the_host(opened):
    _, backend, machine = opened
    for pixels in (PIXELS, PIXELS[:, :, 0].copy(), np.ascontiguousarray(PIXELS[:7])):
        kept = [
            backend.encode(picture)
            for picture in (backend.load_frame(Camera(backend.cuda).take(pixels), "rgb", "frame"), load_picture(pixels))
        ]
        assert bytes_of(machine, kept[0]) == bytes_of(machine, kept[1])


def test_a_frame_that_comes_again_is_encoded_once(opened, encoded):
    engine, backend, machine = opened
    camera = Camera(backend.cuda)
    first = engine.chat("What is it?", images=[camera.take()], **OPTIONS)
    again = engine.chat("What is it?", images=[camera.take()], **OPTIONS)
    assert again.pictures[0] is first.pictures[0] and len(encoded) == 1
    assert again.stats.reused_tokens > 0 and again.raw_text == first.raw_text
    follow_up = engine.chat("Why?", history=again.history, **OPTIONS)
    assert follow_up.pictures == first.pictures and len(encoded) == 1
    del first, again, follow_up  # the picture dies; its features are found again by its digest
    engine.chat("What is it?", images=[camera.take()], system="Another beginning.", **OPTIONS)  # nothing is reused
    assert len(encoded) == 1
    other = PIXELS.copy()
    other[60, 86, 2] ^= 1
    engine.chat("What is it?", images=[camera.take(other)], **OPTIONS)
    assert len(encoded) == 2 and not came_down(machine, *(picture.address for picture in encoded))


def test_a_frame_through_dlpack_is_made_ready_for_our_stream(opened):
    engine, backend, _ = opened
    memory = DeviceMemory(backend.cuda, PIXELS.nbytes)

    def ready():
        kind = backend.cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        address = PIXELS.ctypes.data
        backend.cuda.api.cudaMemcpyAsync(memory.address, address, PIXELS.nbytes, kind, exported.asked_for[-1])

    exported = Exported(memory.address, shape=PIXELS.shape, ready=ready)
    picture = engine.load_picture(exported, channel_order="bgr")
    assert exported.asked_for[0] not in (None, 1, backend.stream.handle)
    np.testing.assert_array_equal(picture.pixels, PIXELS[..., ::-1])


def test_an_interface_that_knows_no_streams_waits_for_the_default_one(opened):
    engine, backend, _ = opened
    api, memory = backend.cuda.api, DeviceMemory(backend.cuda, PIXELS.nbytes)
    kind = api.cudaMemcpyKind.cudaMemcpyHostToDevice
    api.cudaMemcpyAsync(memory.address, PIXELS.ctypes.data, PIXELS.nbytes, kind, 1)
    picture = engine.load_picture(frame(memory.address, PIXELS.shape, version=2))
    assert isinstance(picture, DevicePicture)
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_mapped_memory_is_read_where_it_lies(opened):
    engine, backend, machine = opened
    staging = Staging(backend.cuda, PIXELS.nbytes)
    staging.host[: PIXELS.nbytes] = PIXELS.reshape(-1)
    picture = engine.load_picture(frame(staging.host.ctypes.data, PIXELS.shape))
    staging.host[:] = 0  # the camera's next frame
    assert isinstance(picture, DevicePicture) and not machine.downloads
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_a_camera_s_slot_holds_frames_of_the_gpu(opened):
    engine, backend, machine = opened
    camera, source = Camera(backend.cuda), FrameSource(channel_order="bgr", load=engine.load_picture)
    for shade in range(8):
        source.put(camera.take(np.full_like(PIXELS, shade)))
    source.put(camera.take())
    address = camera.memory.address
    taken = source.take()
    assert (taken.number, source.dropped, taken.picture.name) == (8, 8, "frame 8") and not machine.downloads
    assert engine.chat("What?", images=[taken.picture], **OPTIONS).pictures == (taken.picture,)
    assert not came_down(machine, address, taken.picture.address)
    np.testing.assert_array_equal(taken.picture.pixels, PIXELS[..., ::-1])
    source.put(PIXELS)
    assert not isinstance(source.take().picture, DevicePicture)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"typestr": "<f4"}, r"picture 1 is a GPU frame of <f4 \[61, 87, 3\]; give uint8"),
        ({"shape": (61, 87, 2)}, r"picture 1 is an array of shape \[61, 87, 2\]; give \[H, W\]"),
        ({"strides": (261, 1, 87)}, r"picture 1 is a GPU frame with strides \(261, 1, 87\); give one with contiguous"),
        (
            {"data": (1 << 53, False)},
            "picture 1 lies in a GPU's memory and cannot be read: CUDA could not find the frame",
        ),
        ({"shape": (20_000, 20_000, 3)}, "picture 1 has 20000x20000 pixels, more than the limit"),
    ],
)
def test_frames_that_cannot_be_pictures(opened, changes, match):
    engine, backend, _ = opened
    camera = Camera(backend.cuda)
    source = camera.take()
    source.__cuda_array_interface__.update(changes)
    with pytest.raises(ImageError, match=match):
        engine.chat("What?", images=[source])
    camera.stream.synchronize()


def test_another_gpu_s_frame_comes_by_way_of_the_host(opened, monkeypatch):
    engine, backend, machine = opened
    camera, find = Camera(backend.cuda), backend.cuda.api.cudaPointerGetAttributes

    def elsewhere(address):
        error, where = find(address)
        where.device = 1
        return error, where

    monkeypatch.setattr(backend.cuda.api, "cudaPointerGetAttributes", elsewhere)
    picture = engine.load_picture(camera.take())
    assert not isinstance(picture, DevicePicture) and came_down(machine, camera.memory.address)
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_without_nvrtc_frames_are_copied_and_it_is_said(opened):
    engine, backend, machine = opened
    assert "frames" not in engine.describe()
    machine.architectures = None
    picture = engine.load_picture(Camera(backend.cuda).take())
    assert not isinstance(picture, DevicePicture)
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    note = engine.describe().split("; frames in ")[1]
    assert note.startswith(
        "the GPU's memory are copied to the host, because CUDA's run-time compiler NVRTC is not found"
    )
    assert "pip install nvidia-cuda-nvrtc" in note and "\n" not in note


@pytest.mark.parametrize(
    ("source", "architectures", "match"),
    [
        ("void broken( {\n", [87], r"broken\.cu does not compile for sm_87: .*broken\.cu:1:\d+: error: "),
        ("\n", [75, 87], r"CUDA's driver could not find find_alpha: CUDA_ERROR_NOT_FOUND"),
        ("\n", [90], r"NVRTC makes no code for sm_87"),
    ],
)
def test_kernels_that_cannot_be_used(opened, monkeypatch, tmp_path, source, architectures, match):
    engine, backend, machine = opened
    (tmp_path / "broken.cu").write_text(source)
    monkeypatch.setattr("qwenvl_edge.backends.cuda.frame_kernels.SOURCE", tmp_path / "broken.cu")
    machine.architectures = architectures
    for _ in range(2):
        picture = engine.load_picture(Camera(backend.cuda).take())
        assert not isinstance(picture, DevicePicture)
    note = engine.describe().split("are copied to the host, because ")[1]
    assert re.search(match, note) and "\n" not in note


def test_a_gpu_that_is_newer_than_nvrtc_gets_ptx(opened):
    engine, backend, machine = opened
    machine.architectures = [75, 86]
    picture = engine.load_picture(Camera(backend.cuda).take())
    assert isinstance(picture, DevicePicture)
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_a_backend_on_the_cpu_takes_its_pixels(opened, reference):
    _, backend, _ = opened
    picture = backend.load_frame(Camera(backend.cuda).take(), "rgb", "frame")
    assert reference.load_frame(Camera(backend.cuda).take(), "rgb", "frame") is None
    np.testing.assert_array_equal(reference.encode(picture), reference.encode(load_picture(PIXELS)))
