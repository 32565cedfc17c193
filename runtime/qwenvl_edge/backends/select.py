"""The choice of a backend: a TensorRT plan, else ONNX Runtime on a GPU, else ONNX Runtime on the CPU.

A backend that cannot run on this machine is passed over, and the selection says why. A backend that could run but is
broken is an error: it is never silently replaced by a slower one.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.backends.kept import MEMORY_MB
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BackendError, QwenVLError
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.inputs.options import check_fields, flag, instance, one_of, optional, whole
from qwenvl_edge.inputs.pictures import ChannelOrder
from qwenvl_edge.machine.urls import show

TENSORRT, ONNXRUNTIME = "tensorrt", "onnxruntime"
BACKENDS = ("auto", TENSORRT, ONNXRUNTIME)
DEVICES = ("auto", "cuda", "cpu")
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""More threads than this only wait for each other: 256 on two processors load a small model in half a minute."""


@dataclass(frozen=True)
class EngineOptions:
    """The options of QwenVLEngine, which explains them.

    Raises:
        QwenVLError: a value of another type, or out of its range; ranges that depend on the bundle are checked later.
    """

    threads: Annotated[int | None, optional(whole(least=1, most=MOST_THREADS))]
    max_context: Annotated[int | None, optional(whole("a whole number of tokens", least=-(1 << 63)))]
    backend: Annotated[Backend | str, instance(str, Backend, wanted="the name of a backend, or a Backend")]
    device: Annotated[str, one_of(*DEVICES)]
    channel_order: Annotated[ChannelOrder, one_of(*get_args(ChannelOrder))]
    prefill_chunk: Annotated[int, whole("a whole number of at least 1", least=1)]
    cache_memory_mb: Annotated[int, whole("a whole number of at least 1", least=1, most=1 << 40)]
    min_pixels: Annotated[int | None, optional(whole("a whole number of pixels, at least 1", least=1))] = None
    max_pixels: Annotated[int | None, optional(whole("a whole number of pixels, at least 1", least=1))] = None
    number_pictures: Annotated[bool, flag()] = False

    def __post_init__(self) -> None:
        check_fields(self, QwenVLError)


# Of servers and desktops, of Jetsons, of WSL.
_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/etc/nv_tegra_release", "/dev/dxg")


@dataclass(frozen=True)
class BackendOptions:
    """Options with which a backend is opened.

    threads: CPU threads of one operator; None: the backend's choice. max_context: tokens of the longest conversation;
    None: as many as the model takes. chunk: tokens of the longest call. cache_memory_mb: memory for KV caches of recent
    conversations. limits: of the pictures.
    """

    bundle: Bundle
    threads: int | None
    max_context: int | None
    chunk: int
    cache_memory_mb: int = MEMORY_MB
    limits: PixelLimits = NO_LIMITS

    @property
    def context(self) -> int:
        """Tokens of the longest conversation."""
        return self.max_context or self.bundle.manifest.model.max_position_embeddings


@dataclass(frozen=True)
class Selection:
    """An opened backend, and the reasons why preferred ones were passed over: one, where there is no GPU."""

    backend: Backend
    passed_over: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line: the backend, its device, and the reasons."""
        reasons = "; ".join(self.passed_over)
        return self.backend.describe() + (f" (because {reasons})" if reasons else "")


def select_backend(options: BackendOptions, backend: str, device: str) -> Selection:
    """Open the first backend that can run here, of those that `backend` and `device` allow.

    Args:
        options: what it is opened for.
        backend: "auto", "tensorrt" or "onnxruntime".
        device: "auto", "cuda" or "cpu".

    Raises:
        BackendError: a name is unknown, none of them can run here, or the one that can fails to load.
        BundleError: a plan beside the bundle is damaged.
    """
    for what, given, known in (("backend", backend, BACKENDS), ("device", device, DEVICES)):
        if given not in known:
            raise BackendError(f"the {what} {show(given)} is unknown; this version has {', '.join(map(repr, known))}.")
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
            open_it = prepare(options)
        except BackendError as error:
            reasons.append(str(error).rstrip("."))
            continue
        if reasons and driver_absent():
            reasons = ["there is no NVIDIA driver on this machine"]
        return Selection(open_it(), tuple(reasons))
    raise BackendError(f"{'; '.join(reasons)}.")


def own_backend(backend: Backend, bundle: Bundle) -> Selection:
    """Select a backend that the caller has opened, after a check that it is for the bundle's model.

    Raises:
        BackendError: it is for another model.
    """
    have, need = (dataclasses.asdict(model) for model in (backend.model, bundle.manifest.model))
    if different := [f"{name} {have[name]} instead of {need[name]}" for name in need if have[name] != need[name]]:
        raise BackendError(
            f'{backend.description} is for another model than the bundle "{bundle.path}": it has '
            f"{', '.join(different)}; open it with this bundle."
        )
    return Selection(backend)


def driver_absent() -> bool:
    """True on a Linux machine without NVIDIA's driver, where advice about GPUs would mislead."""
    return sys.platform == "linux" and not any(Path(file).exists() for file in _DRIVER_FILES)


def survey(options: BackendOptions) -> list[tuple[str, str | None]]:
    """Every backend by preference, with the reason why it cannot run here (None: it can); none is opened."""
    found: list[tuple[str, str | None]] = []
    for (name, place), prepare in _CANDIDATES.items():
        try:
            prepare(options)
        except QwenVLError as error:
            found.append((f"{name}, {place}", str(error)))
        else:
            found.append((f"{name}, {place}", None))
    return found


def _tensorrt(options: BackendOptions) -> Callable[[], Backend]:
    from qwenvl_edge.bundle.engines import Plan, choose_plan, plan_targets

    bundle = options.bundle
    if not plan_targets(bundle.path):
        raise BackendError(f"the bundle has no TensorRT plan (`qwenvl build {bundle.path}` makes one)")
    from qwenvl_edge.backends.memory_estimate import check_fits_gpu
    from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
    from qwenvl_edge.backends.tensorrt.library import Library, installed_libraries
    from qwenvl_edge.machine.cuda import Cuda

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
    check_fits_gpu(bundle, min(options.context, plan.manifest.limits.max_context), cuda.free_bytes())
    return lambda: TensorRTBackend(bundle, plan, library, cuda)


def _cuda(options: BackendOptions) -> Callable[[], Backend]:
    from qwenvl_edge.backends.memory_estimate import check_fits_gpu
    from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend, check_cuda

    cuda = check_cuda(options.bundle)
    check_fits_gpu(options.bundle, options.context, cuda.free_bytes())
    return lambda: OnnxRuntimeCudaBackend(options.bundle)


def _cpu(options: BackendOptions) -> Callable[[], Backend]:
    from qwenvl_edge.backends.memory_estimate import check_fits, estimate_memory
    from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
    from qwenvl_edge.backends.onnxruntime.session import fastest_dialect, weight_bytes

    def open_it() -> Backend:
        context = options.context
        estimate = estimate_memory(
            options.bundle,
            max_context=context,
            chunk=min(options.chunk, context),
            cache_memory_mb=options.cache_memory_mb,
            limits=options.limits,
            weights=weight_bytes(options.bundle, fastest_dialect(options.bundle, options.threads)),
        )
        check_fits(estimate)
        return OnnxRuntimeBackend(options.bundle, threads=options.threads)

    return open_it


_CANDIDATES: dict[tuple[str, str], Callable[[BackendOptions], Callable[[], Backend]]] = {
    (TENSORRT, "cuda"): _tensorrt,
    (ONNXRUNTIME, "cuda"): _cuda,
    (ONNXRUNTIME, "cpu"): _cpu,
}
