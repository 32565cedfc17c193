"""Camera frames in the memory of a real GPU: NVRTC's kernels compute the native core's bits, and nothing comes down."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.cuda.frame_kernels import FrameKernels
from qwenvl_edge.backends.cuda.pictures import DevicePicture, FrameLoader
from qwenvl_edge.backends.cuda.pixel_values import PixelValues
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.inputs.pictures import load_picture, pixel_values
from qwenvl_edge.machine.cuda import Cuda, Stream
from support.paths import ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
NANO = ROOT / "models" / "nano"
PREPROCESSING = Preprocessing(448, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIZES = [(1, 1), (1080, 1920), (5, 7), (3000, 40), (448, 448), (33, 2001), (2160, 3840)]


class Exported:
    """A tensor through DLPack alone, for which PyTorch makes the asking stream wait."""

    def __init__(self, tensor):
        self._tensor = tensor
        self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} sees no CUDA GPU")
    try:
        cuda = Cuda.open()
    except BackendError as error:
        pytest.skip(str(error))
    if problem := FrameKernels(cuda).problem():
        pytest.skip(problem)
    return cuda


@pytest.fixture(scope="module")
def loader(cuda) -> FrameLoader:
    loader = FrameLoader(cuda)
    assert loader.kernels.ready(), loader.kernels.problem()
    return loader


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_native_core_s_bits(cuda, loader, size):
    stream = Stream(cuda)
    values = PixelValues(cuda, FrameKernels(cuda), stream)
    for channels in ((), (1,), (3,), (4,)):
        pixels = noise(*size, *channels)
        tensor = torch.from_numpy(pixels).cuda()
        for order in ("rgb", "bgr"):
            for source in (tensor, Exported(tensor)):
                picture = loader.load(source, order, "frame")
                on_host = load_picture(pixels, channel_order=order)
                np.testing.assert_array_equal(picture.pixels, on_host.pixels)
                with stream.waited_for():
                    address = values.compute(picture, PREPROCESSING)
                found = np.empty((3, 448, 448), np.float32)
                target = found.ctypes.data_as(ctypes.c_void_p).value
                kind = cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
                cuda.call("copy", cuda.api.cudaMemcpy, target, address, found.nbytes, kind)
                np.testing.assert_array_equal(found, pixel_values(on_host, PREPROCESSING))


def test_a_frame_that_is_still_being_made(loader):
    """The producer's stream is busy for long when the frame is handed over, and its memory is used again at once."""
    pixels = noise(480, 640, 3)
    source, side = torch.from_numpy(pixels).cuda(), torch.cuda.Stream()
    target, work = torch.zeros_like(source), torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for wrap in (lambda tensor: tensor, Exported):
        with torch.cuda.stream(side):
            for _ in range(20):
                work = work @ work / 4096
            target.copy_(source)
            picture = loader.load(wrap(target), "rgb", "frame")
            target.zero_()
        np.testing.assert_array_equal(picture.pixels, pixels)


def test_digests(loader):
    pixels = torch.from_numpy(noise(1080, 1920, 3)).cuda()
    first = loader.load(pixels, "rgb", "frame").digest
    assert all(loader.load(pixels.clone(), "rgb", "frame").digest == first for _ in range(20))
    assert loader.load(pixels.flip(2).contiguous(), "bgr", "frame").digest == first
    found = {first}
    for place in (0, 1, 3_110_401, 6_220_799):
        other = pixels.clone()
        other.view(-1)[place] ^= 1
        found.add(loader.load(other, "rgb", "frame").digest)
    assert len(found) == 5


def test_an_engine_is_asked_about_a_frame(cuda, nano_exports, monkeypatch):
    from qwenvl_edge.backends.onnxruntime.gpu import check_cuda

    bundle = nano_exports("fp16", target="gpu")
    try:
        check_cuda(bundle)
    except BackendError as error:
        pytest.skip(str(error))
    engine = QwenVLEngine(bundle, backend="onnxruntime", device="cuda")
    picture = load_picture(NANO / "demo.png")
    on_gpu = torch.from_numpy(picture.pixels.copy()).cuda()
    with monkeypatch.context() as patch:
        patch.setattr(FrameLoader, "download", lambda *_: pytest.fail("pixels came down"))
        replies = [engine.chat("Where is the red mug?", images=[image], do_sample=False) for image in (on_gpu, picture)]
        again = engine.chat("Where is the red mug?", images=[on_gpu.clone()], do_sample=False)
    assert isinstance(replies[0].pictures[0], DevicePicture) and again.pictures[0] is replies[0].pictures[0]
    assert replies[0].raw_text == replies[1].raw_text == again.raw_text and replies[0].boxes
    assert replies[0].draw().tobytes() == replies[1].draw().tobytes()
