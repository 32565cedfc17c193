"""Which backend runs a bundle here: a TensorRT plan, then ONNX Runtime on a GPU, then ONNX Runtime on the CPU.

What cannot run on this machine is passed over, and the selection says why. What could run and turns out broken is an
error: it is never replaced in silence by something slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.decoding.prefix_cache import MEMORY_MB
from qwenvl_edge.errors import BackendError, QwenVLError

TENSORRT, ONNXRUNTIME = "tensorrt", "onnxruntime"
BACKENDS = ("auto", TENSORRT, ONNXRUNTIME)
DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True)
class Request:
    """What a backend is opened for.

    max_context, chunk: tokens of a conversation (None: all it takes), of a call. cache_memory_mb: for KV caches of
    recent conversations.
    """

    bundle: Bundle
    threads: int | None
    max_context: int | None
    chunk: int
    cache_memory_mb: int = MEMORY_MB

    @property
    def context(self) -> int:
        """Tokens of the longest conversation."""
        return self.max_context or self.bundle.manifest.model.max_position_embeddings


@dataclass(frozen=True)
class Selection:
    """An opened backend, and why those that would have come before it were passed over."""

    backend: Backend
    passed_over: tuple[str, ...] = ()

    def describe(self) -> str:
        """What runs, where, and why, in a line."""
        reasons = "; ".join(self.passed_over)
        return self.backend.describe() + (f" (because {reasons})" if reasons else "")


def select_backend(request: Request, backend: str, device: str) -> Selection:
    """Open the first backend that can run here, of those that `backend` and `device` allow.

    Args:
        request: for what.
        backend: "auto", "tensorrt" or "onnxruntime".
        device: "auto", "cuda" or "cpu".

    Raises:
        BackendError: a name is unknown, none of them can run here, or the one that can fails to load.
        BundleError: a plan beside the bundle is damaged.
    """
    for what, given, known in (("backend", backend, BACKENDS), ("device", device, DEVICES)):
        if given not in known:
            raise BackendError(f"the {what} {given!r} is unknown; this version has {', '.join(map(repr, known))}.")
    candidates = [
        prepare
        for (name, place), prepare in _CANDIDATES.items()
        if backend in ("auto", name) and device in ("auto", place)
    ]
    if not candidates:
        raise BackendError(f'"{backend}" runs on GPUs only; leave the device at "auto".')
    reasons: list[str] = []
    for prepare in candidates:
        try:
            open_it = prepare(request)
        except BackendError as error:
            reasons.append(str(error).rstrip("."))
            continue
        return Selection(open_it(), tuple(reasons))
    raise BackendError(f"{'; '.join(reasons)}.")


def survey(request: Request) -> list[tuple[str, str | None]]:
    """Every backend in the order of preference, with why it cannot run here (None: it can); none is opened."""
    found: list[tuple[str, str | None]] = []
    for (name, place), prepare in _CANDIDATES.items():
        try:
            prepare(request)
        except QwenVLError as error:
            found.append((f"{name}, {place}", str(error)))
        else:
            found.append((f"{name}, {place}", None))
    return found


def _tensorrt(request: Request) -> Callable[[], Backend]:
    from qwenvl_edge.bundle.engines import Plan, choose_plan, plan_targets

    bundle = request.bundle
    if not plan_targets(bundle.path):
        raise BackendError(f"the bundle has no TensorRT plan (`qwenvl build {bundle.path}` makes one)")
    from qwenvl_edge.backends.cuda.device import Cuda
    from qwenvl_edge.backends.memory_estimate import check_fits_gpu
    from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
    from qwenvl_edge.backends.tensorrt.library import Library, installed_libraries

    cuda = Cuda.open()  # before the libraries, which are large
    libraries = installed_libraries()
    if not libraries:
        raise BackendError("TensorRT is not installed, which the bundle's plans need")

    def choose() -> tuple[Plan, Library]:
        for library in libraries[:-1]:
            try:
                return choose_plan(bundle, library.machine(cuda.compute_capability)), library
            except BackendError:
                continue
        return choose_plan(bundle, libraries[-1].machine(cuda.compute_capability)), libraries[-1]

    plan, library = choose()
    check_fits_gpu(bundle, min(request.context, plan.manifest.limits.max_context), cuda.free_bytes())
    return lambda: TensorRTBackend(bundle, plan, library, cuda)


def _cuda(request: Request) -> Callable[[], Backend]:
    from qwenvl_edge.backends.memory_estimate import check_fits_gpu
    from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend, check_cuda

    cuda = check_cuda(request.bundle)
    check_fits_gpu(request.bundle, request.context, cuda.free_bytes())
    return lambda: OnnxRuntimeCudaBackend(request.bundle)


def _cpu(request: Request) -> Callable[[], Backend]:
    from qwenvl_edge.backends.memory_estimate import check_fits, plan_memory
    from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend

    def open_it() -> Backend:
        context = request.context
        plan = plan_memory(
            request.bundle,
            max_context=context,
            chunk=min(request.chunk, context),
            cache_memory_mb=request.cache_memory_mb,
        )
        check_fits(plan)
        return OnnxRuntimeBackend(request.bundle, threads=request.threads)

    return open_it


_CANDIDATES: dict[tuple[str, str], Callable[[Request], Callable[[], Backend]]] = {
    (TENSORRT, "cuda"): _tensorrt,
    (ONNXRUNTIME, "cuda"): _cuda,
    (ONNXRUNTIME, "cpu"): _cpu,
}
