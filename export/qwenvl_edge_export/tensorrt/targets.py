"""Targets that plans can be built for, and the installed library that can do it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.bundle.engines import TENSORRT, TENSORRT_RTX
from qwenvl_edge.errors import BackendError

Release: TypeAlias = tuple[int, ...]  # major and minor version

LOCAL = "local"
CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# Compute capabilities as NVIDIA's tables give them.
NAMES = {
    "t4": 75,
    "a100": 80,
    "rtx30": 86,
    "a10": 86,
    "orin": 87,
    "l4": 89,
    "rtx40": 89,
    "h100": 90,
    "h200": 90,
    "b200": 100,
    "b300": 103,
    "thor": 110,
    "rtx50": 120,
    "spark": 121,
}
INSTALL = (
    "install TensorRT for RTX with pip install 'qwenvl-edge[tensorrt-rtx]', which builds without a GPU, or use the "
    "tensorrt that JetPack or pip brings"
)
OLDEST = (10, 3)  # TensorRT whose plugins may update their inputs
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_FIRST_WITH = {"bf16": 80, "int4": 80}


@dataclass(frozen=True)
class Target:
    """A GPU that a plan is for: its name is the plan's folder; capability is 10 * major + minor."""

    name: str
    capability: int
    library: Library


def choose(name: str, libraries: Sequence[Library], gpu: int | None) -> Target:
    """The target called `name`, with the library that builds for it.

    TensorRT builds for the GPU that it runs on, and is taken where it can; TensorRT-RTX needs no GPU.

    Args:
        name: "local", "sm_86" or the like, or a key of NAMES.
        libraries: what is installed.
        gpu: compute capability of this machine's GPU; None without one.

    Raises:
        BackendError: no such target, nothing is installed, or nothing of it can build for this target; says what can.
    """
    capability = _capability(name.lower(), gpu)
    if not libraries:
        raise BackendError(f"no TensorRT is installed; {INSTALL}.")
    for library in libraries:
        if capability in _can_build(library, gpu):
            if library.api == TENSORRT and release(library) < OLDEST:
                raise BackendError(f"{library.name} is too old; 10.3 (JetPack 6.1) or newer is needed.")
            return Target(name.lower(), capability, library)
    able = "; ".join(f"{each.name} builds for {_list(_can_build(each, gpu))}" for each in libraries)
    known = "" if name.lower() == f"sm_{capability}" else f" (sm_{capability})"
    raise BackendError(
        f'nothing here builds plans for "{name}"{known}: {able}; '
        f"run `qwenvl build BUNDLE --target local` on the machine that has that GPU, with tensorrt installed there."
    )


def release(library: Library) -> Release:
    """Major and minor version."""
    return tuple(int(part) for part in library.version.split(".")[:2])


def check_precision(target: Target, precisions: Sequence[str]) -> None:
    """Check that the target's processor has the precisions that a bundle stores and computes in.

    Raises:
        BackendError: it lacks one of them.
    """
    for precision in precisions:
        if target.capability < _FIRST_WITH.get(precision, 0):
            raise BackendError(
                f"sm_{target.capability} has no {precision}, which this bundle uses; "
                "export it with --target gpu --precision fp16."
            )


def local_gpu() -> int | None:
    """Compute capability (10 * major + minor) of GPU 0, asked of the driver; None without a GPU or a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    return None if failed else 10 * major.value + minor.value


def _capability(name: str, gpu: int | None) -> int:
    if name == LOCAL:
        if gpu is None:
            raise BackendError(
                "--target local builds for this machine's GPU, but there is none that a driver shows; "
                "name the GPU instead, such as --target sm_86."
            )
        return gpu
    numbers = {f"sm_{number}": number for number in CAPABILITIES} | NAMES
    if name not in numbers:
        raise BackendError(f'the target "{name}" is not one of {LOCAL}, {", ".join(numbers)}.')
    return numbers[name]


def _can_build(library: Library, gpu: int | None) -> list[int]:
    if library.api == TENSORRT_RTX:
        members = library.module.ComputeCapability.__members__
        return [number for number in CAPABILITIES if f"SM{number}" in members]
    return [gpu] if library.api == TENSORRT and gpu is not None else []


def _list(capabilities: Sequence[int]) -> str:
    return ", ".join(f"sm_{number}" for number in capabilities) or "the GPU of its own machine only, and here is none"
