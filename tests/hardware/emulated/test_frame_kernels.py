"""backends/cuda/frames.cu, run thread by thread by a CPU, computes the native core's results; it compiles for GPUs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess

import numpy as np
import pytest

from qwenvl_edge import _core
from qwenvl_edge.backends.cuda.frame_kernels import SOURCE
from qwenvl_edge.backends.cuda.kernels import _Compiler, nvrtc_problem
from qwenvl_edge.backends.cuda.pictures import FrameLoader
from qwenvl_edge.backends.cuda.pixel_values import PixelValues
from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.families.pieces import NO_LIMITS
from qwenvl_edge.inputs.pictures import MAX_SIDE, load_picture, pixel_values
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Stream
from support.device_frames import frame
from support.families import FAMILIES, family_of
from support.standin import nvrtc, plans
from support.standin.machine import Machine

# Height and width: one pixel, a line, a column, odd, tall, wide; smaller and larger than SIDE.
SIZES = [(1, 1), (1, 9), (300, 1), (5, 7), (17, 33), (23, 24), (211, 19), (14, 260), (131, 97)]
SIDE = 23
PREPROCESSING = Preprocessing(SIDE, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

emulated = pytest.mark.skipif(bool(nvrtc.missing()), reason=f"kernels are not emulated here: {nvrtc.missing()}")


class Gpu:
    """What a backend has of all this, on a stand-in machine."""

    def __init__(self, machine: Machine):
        self.machine, self.cuda = machine, Cuda.open()
        self.stream = Stream(self.cuda)
        self.frames = FrameLoader(self.cuda)
        self.values = PixelValues(self.cuda, self.frames.kernels, self.stream)

    def load(self, pixels, order="rgb", *, pitch=None):
        """A picture of an array that was put into the GPU's memory."""
        row = pixels[0].size
        rows = np.full((len(pixels), pitch or row), 0xAB, np.uint8)
        rows[:, :row] = pixels.reshape(len(pixels), row)
        memory = DeviceMemory(self.cuda, rows.nbytes)
        self.stream.upload(memory.address, rows)
        strides = (rows.shape[1], *pixels.strides[1:])
        source = frame(memory.address, pixels.shape, strides=strides, stream=self.stream.handle)
        try:
            picture = self.frames.load(source, order, "frame")
        finally:
            self.stream.synchronize()
        self.stream.clear(memory.address, rows.nbytes)  # the owner may use it again
        self.stream.synchronize()
        return picture

    def pixel_values(self, picture, preprocessing=PREPROCESSING):
        """What the vision graph gets of it."""
        with self.stream.waited_for():
            return self._read(self.values.compute(picture, preprocessing))[0]

    def patches(self, pictures, family, layout):
        """The same, of frames that are cut up."""
        how = family.preprocessing
        with self.stream.waited_for():
            found = self.values.patches(pictures, how, how.patches, layout)
        return self._read(found)

    def _read(self, array):
        self.stream.synchronize()
        data = self.machine.view(self.machine.block_range(array.address))
        return data[: 4 * math.prod(array.shape)].view(np.float32).reshape(array.shape).copy()


@pytest.fixture(params=[False, True], ids=["ascending", "descending"])
def gpu(monkeypatch, request) -> Gpu:
    machine = Machine()
    machine.descending = request.param
    plans.install(monkeypatch, machine)
    return Gpu(machine)


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


@emulated
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_native_core_s_bits(gpu, size):
    for channels in ((), (1,), (3,), (4,)):
        pixels = noise(*size, *channels)
        for order in ("rgb", "bgr"):
            for pitch in (None, pixels[0].size + 5):
                picture = gpu.load(pixels, order, pitch=pitch)
                found = gpu.pixel_values(picture)
                seen = load_picture(pixels, channel_order=order).pixels  # alpha is put on white
                wanted = _core.pixel_values(seen, (SIDE, SIDE), PREPROCESSING.mean, PREPROCESSING.std, "rgb")
                np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    assert not gpu.machine.downloads


@emulated
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_patches_have_the_native_core_s_bits(gpu, name, count):
    """Pictures and clips of every shape; an odd clip's last frame fills up the last patch."""
    family = family_of(name)
    for height, width in ((1, 9), (23, 24), (211, 19), (61, 87)):
        frames = [noise(height, width, 3) + number for number in range(count)]
        size, times = (width, height), [number / 2 for number in range(count)]
        layout = family.layout(size) if count == 1 else family.clip_layout(size, times, NO_LIMITS)
        found = gpu.patches([gpu.load(frame) for frame in frames], family, layout)
        wanted = family.vision_inputs(frames, layout)[PIXEL_VALUES]
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    assert not gpu.machine.downloads


@emulated
@pytest.mark.parametrize("side", [1, 56, 200])
def test_other_sides_and_extreme_pictures(gpu, side):
    """Black and white next to each other overshoot, so that sums leave 0 .. 255 on both sides."""
    preprocessing = Preprocessing(side, (0.5, 0.0, 0.1), (0.5, 1.0, 0.3))
    stripes = np.repeat(np.where(noise(40, 61, 1) > 127, np.uint8(255), np.uint8(0)), 3, axis=2)
    for pixels in (stripes, np.ascontiguousarray(stripes.transpose(1, 0, 2)), np.full((9, 9, 3), 255, np.uint8)):
        picture = gpu.load(pixels)
        wanted = pixel_values(load_picture(pixels), preprocessing)
        np.testing.assert_array_equal(gpu.pixel_values(picture, preprocessing), wanted)


@emulated
def test_a_picture_is_what_it_is_on_the_host(gpu):
    pixels = noise(31, 45, 4)
    picture = gpu.load(pixels, "bgr", pitch=256)
    assert (picture.size, picture.name) == ((45, 31), "frame")
    assert not gpu.machine.downloads
    wanted = load_picture(pixels, channel_order="bgr")
    np.testing.assert_array_equal(picture.pixels, wanted.pixels)
    assert picture.to_pil().tobytes() == wanted.to_pil().tobytes()
    assert len(gpu.machine.downloads) == 1 and not picture.pixels.flags.writeable
    assert "pixels" not in repr(picture)


@emulated
@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_a_fourth_byte_that_is_0_everywhere_is_no_alpha(gpu, alpha):
    pixels = noise(31, 145, 4)
    pixels[:, :, 3] = 0
    pixels[30, 144, 3] = alpha
    np.testing.assert_array_equal(gpu.load(pixels).pixels, load_picture(pixels).pixels)
    seen = pixels[:, :, :3] if alpha == 0 else np.full((31, 145, 3), 255)
    np.testing.assert_array_equal(load_picture(pixels).pixels[:30], seen[:30])


@emulated
def test_digests_tell_pictures_apart(gpu):
    pixels = noise(60, 80, 3)
    digest = gpu.load(pixels).digest
    swapped, lines, rng = pixels.copy(), pixels.copy(), np.random.default_rng(1)
    swapped[[3, 40]] = pixels[[40, 3]]
    lines[:, [0, 79]] = pixels[:, [79, 0]]
    moved = pixels.reshape(-1, 8)[::-1].reshape(pixels.shape)  # the words that the kernel reads, in another order
    others = [swapped, lines, moved, pixels[::-1], pixels.reshape(80, 60, 3), pixels.transpose(1, 0, 2)]
    others += [pixels[:, :-1], np.zeros_like(pixels), np.zeros((60, 81, 3), np.uint8)]
    for place in (0, pixels.size - 1, *rng.integers(0, pixels.size, 20)):
        changed = pixels.copy().reshape(-1)
        changed[place] ^= 1 << int(rng.integers(8))
        others.append(changed.reshape(pixels.shape))
    digests = [gpu.load(np.ascontiguousarray(other)).digest for other in others]
    assert len({digest, *digests}) == len(others) + 1
    assert digest.startswith("80x60 on the GPU ") and len(digest.split()[-1]) == 32
    # Equal pixels, however they were laid out, have one digest: also those of another loader and in another order.
    assert Gpu(gpu.machine).load(pixels[..., ::-1].copy(), "bgr", pitch=300).digest == digest
    gpu.machine.descending = not gpu.machine.descending
    assert gpu.load(pixels).digest == digest


@emulated
def test_a_digest_is_the_sum_that_the_kernel_s_comment_describes(gpu, monkeypatch):
    """Written again with Python's integers, over pictures whose last word is whole and not."""
    seeds, mask = (0x0123456789ABCDEF, 0xFEDCBA9876543210), 2**64 - 1
    monkeypatch.setattr("qwenvl_edge.backends.cuda.frame_kernels._SEEDS", seeds)

    def mixed(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    for size in ((8, 16), (5, 7), (1, 1), (90, 200)):
        data, total = noise(*size, 3).tobytes(), [0, 0]
        words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]
        words.append(int.from_bytes(data[8 * len(words) :], "big"))
        for lane, seed in enumerate(seeds):
            keys = (mixed(seed + (i + 1) * 0x9E3779B97F4A7C15 & mask) for i in range(len(words)))
            total[lane] = sum(mixed(word ^ key) for word, key in zip(words, keys, strict=True)) & mask
        wanted = b"".join(each.to_bytes(8, "little") for each in total).hex()
        assert gpu.load(noise(*size, 3)).digest.split()[-1] == wanted


@emulated
def test_memory_of_dead_pictures_is_used_again(gpu):
    first = gpu.load(noise(8, 9, 3))
    addresses = {first.address, gpu.load(noise(8, 9, 3)).address}
    assert len(addresses) == 2
    assert gpu.load(noise(8, 9, 3)).address in addresses - {first.address}
    other = gpu.load(noise(9, 9, 3))
    assert other.address not in addresses
    np.testing.assert_array_equal(first.pixels, noise(8, 9, 3))


@emulated
def test_pictures_that_are_left_to_the_host(gpu):
    with pytest.raises(ImageError, match="a side of more than 65,535"):
        gpu.load(noise(MAX_SIDE + 1, 1, 1))
    for source in (noise(4, 4, 3), b"bytes", None, [1]):
        assert gpu.frames.load(source, "rgb", "frame") is None
    with pytest.raises(ImageError, match=r"frame is an array of shape \[4, 4, 2\]; give \[H, W\]"):
        gpu.load(noise(4, 4, 2))
    with pytest.raises(ImageError, match="channel_order is 'gbr'; give 'rgb', 'bgr' or 'nv12'"):
        gpu.load(noise(4, 4, 3), "gbr")


@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
def test_every_architecture_is_compiled_with_warnings_as_errors(tmp_path):
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    assert len(known) > 4
    targets = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in known]
    flags = ["-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-fatbin"]
    command = ["nvcc", *flags, *targets, SOURCE, "-o", tmp_path / "frames.fatbin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (tmp_path / "frames.fatbin").stat().st_size > 1000 * len(known)


@pytest.mark.skipif(bool(nvrtc_problem()), reason="NVRTC is not installed")
def test_the_real_nvrtc_compiles_it():
    from cuda.bindings import nvrtc as real

    names = (b"pack_rgb", b"resample_y", b"resample_patches", b"digest")
    _, architectures = real.nvrtcGetSupportedArchs()
    for capability in architectures:
        image = _Compiler(real).compile(SOURCE, capability)
        assert image.startswith(b"\x7fELF") and all(name in image for name in names)
    ptx = _Compiler(real).compile(SOURCE, 10 * max(architectures))  # a GPU that came after this NVRTC
    assert f".target sm_{max(architectures)}".encode() in ptx and ptx.endswith(b"\0")


def test_the_axis_is_what_resizing_is_made_of():
    """Each output pixel's weights make about one, lie inside the input, and give a ramp back."""
    for size, output in ((1, 1), (7, 5), (5, 7), (1000, 33), (3, 448)):
        first, count, weights = _core.bicubic_axis(size, output)
        assert first.shape == count.shape == (output,) and weights.shape[0] == output
        assert (first >= 0).all() and (count >= 1).all() and (first + count <= size).all()
        assert not weights[np.arange(weights.shape[1]) >= count[:, None]].any()
        assert np.abs(weights.sum(axis=1) - (1 << 22)).max() <= weights.shape[1]
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="both must be 1 or more"):
            _core.bicubic_axis(*wrong)


def test_the_kernels_lie_in_the_package():
    assert SOURCE.exists() and os.fspath(SOURCE).endswith("backends/cuda/frames.cu")
