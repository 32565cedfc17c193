"""ONNX Runtime on a GPU: caches, inputs and logits in memory that cuda-python holds.

GroupQueryAttention computes in fp16 or bf16 on GPUs, so the bundle must have been exported for one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import onnxruntime as ort

from qwenvl_edge.backends.base import FloatArray, Inputs, KVCache, Placed
from qwenvl_edge.backends.cuda.backend import DeviceBackend
from qwenvl_edge.backends.cuda.cache import DeviceCaches
from qwenvl_edge.backends.cuda.encoder import PictureEncoder
from qwenvl_edge.backends.cuda.features import DeviceFeatures
from qwenvl_edge.backends.cuda.pictures import FrameLoader
from qwenvl_edge.backends.kept import check_picture_fits
from qwenvl_edge.backends.onnxruntime.gpu_graphs import Exchange, OrtDecoder, OrtVision
from qwenvl_edge.backends.onnxruntime.graph_checks import check_decoder, check_vision
from qwenvl_edge.backends.onnxruntime.session import cache_note, failed, give_weights
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import ONNXRUNTIME
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families import open_family
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.machine.cuda import Cuda, Stream
from qwenvl_edge.machine.forks import keep

_PROVIDER = "CUDAExecutionProvider"
_FLOATS = {"fp16": 10, "bf16": 16}  # ONNX's numbers of the types; NumPy has no bfloat16


class OnnxRuntimeCudaBackend(DeviceBackend):
    """Runs a bundle with ONNX Runtime's CUDA provider. captures: ONNX Runtime captures steps as CUDA graphs.

    Raises:
        BackendError: as check_cuda, or ONNX Runtime cannot load the bundle or start on the GPU.
    """

    def __init__(self, bundle: Bundle):
        self.cuda = check_cuda(bundle)
        self._preloaded = _preload()
        self.stream = Stream(self.cuda)
        self.family = open_family(bundle.manifest)
        manifest = bundle.manifest
        self.model: ModelInfo = manifest.model
        vision = self._session(bundle, manifest.graphs.vision, "vision")
        if ONNXRUNTIME not in manifest.graphs.decoder:
            raise BackendError(
                f"ONNX Runtime's attention on a GPU does not take heads of {self.model.head_dim} channels; build "
                'TensorRT plans of the bundle, or choose device="cpu".'
            )
        name = manifest.graphs.decoder[ONNXRUNTIME]
        refusal = ""
        try:
            decoder = self._session(bundle, name, "decoder", capture=True)
        except BackendError as error:
            decoder = self._session(bundle, name, "decoder")
            refusal = str(error)
        self.captures = not refusal
        check_vision(vision, bundle.file(manifest.graphs.vision), self.model, self.family)
        check_decoder(decoder, bundle.file(name), ONNXRUNTIME, self.model)
        exchange = Exchange(self.cuda, self.stream)
        float_type = _FLOATS[manifest.precision.compute["decoder"]]
        self._decoder = OrtDecoder(
            decoder, self.model, self.cuda, self.stream, exchange, captures=self.captures, float_type=float_type
        )
        self._caches = DeviceCaches(self.model, self.stream, self._decoder.new_memory, self._decoder.new_buffers)
        self._frames = FrameLoader(self.cuda)
        self._workspace = manifest.workspace
        self._most_tokens = self.family.largest_layout().tokens
        graph = OrtVision(vision, exchange)
        self._encoder = PictureEncoder(self.cuda, self.stream, self._frames.kernels, self.family, self.model, graph)
        how = "a CUDA graph a token" if self.captures else f"without CUDA graphs ({refusal})"
        self.description = (
            f"ONNX Runtime {ort.__version__} on {self.cuda.name} (sm_{self.cuda.compute_capability}), {how}"
            + cache_note(bundle)
        )

    def encode(self, picture: Visual) -> DeviceFeatures:
        """See Backend.encode; refuses a picture for which there is not enough memory."""
        layout = picture.layout(self.family)
        if layout.tokens > self._most_tokens:
            check_picture_fits(self._workspace, self.family, layout, self.cuda.free_bytes())
        return self._encoder.encode(picture)

    def cache_bytes(self, capacity: int) -> int:
        """See Backend.cache_bytes."""
        return self._decoder.cache_bytes(capacity)

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        return self._decoder.run(cache, inputs, pictures, length)

    def _session(self, bundle: Bundle, name: str, graph: str, *, capture: bool = False) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        weights = give_weights(options, bundle, name, graph)  # noqa: F841 - must live until they are copied
        provider = {"device_id": "0", "user_compute_stream": str(self.stream.handle)}
        if capture:
            provider["enable_cuda_graph"] = "1"
        path = bundle.file(name)
        try:
            session = keep(ort.InferenceSession(str(path), options, providers=[(_PROVIDER, provider)]))
        except Exception as error:
            raise failed(f'load "{path}" on the GPU', error) from None
        if _PROVIDER not in session.get_providers():  # it falls back to the CPU without an error
            raise BackendError(
                f"ONNX Runtime {ort.__version__} could not start on the GPU{_reason(self._preloaded)}; install the "
                "CUDA and cuDNN that it was built for: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session


def _preload() -> str:
    """Load the CUDA and cuDNN that pip installed, which the system's search does not find; return what was printed."""
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said), contextlib.suppress(RuntimeError):
            ort.preload_dlls()
    return said.getvalue()


def _reason(printed: str) -> str:
    lines = [line for line in printed.splitlines() if line.startswith("Failed to load")]
    return f" ({lines[0]})" if lines else ""


def check_cuda(bundle: Bundle) -> Cuda:
    """Check that ONNX Runtime can run the bundle on a GPU here, before anything is loaded; return the GPU.

    Raises:
        BackendError: it was built without CUDA, there is no GPU, or the bundle computes in float32.
    """
    if _PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} is installed without CUDA; for a GPU run: "
            "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    compute = bundle.manifest.precision.compute["decoder"]
    if compute not in _FLOATS:
        raise BackendError(
            f"the bundle's decoder computes in {compute}, but ONNX Runtime's attention takes fp16 or bf16 on a GPU; "
            "export it with --target gpu or --precision fp16"
        )
    return Cuda.open()
