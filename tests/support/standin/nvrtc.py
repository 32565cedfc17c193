# ruff: noqa: N802, N803 - the names are those of the real module
"""cuda.bindings.nvrtc for the stand-in: the C++ compiler makes a library for the CPU of the source that it is given.

Each thread of a kernel is then a fiber of the plugin's simt.hpp, which needs CUDA's headers. What would be machine code
for a GPU is the path of the library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import ModuleType

from support.paths import ROOT
from support.standin.machine import Machine

SIMT = ROOT / "cpp_ext" / "tensorrt_plugin" / "tests"
BUILD = ROOT / "build" / "standin"
MAGIC = b"stand-in library\n"
_FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-Wno-attributes"),
    *("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover=all"),
)
_KERNEL = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\(\w+\))?\s+(\w+)\(')


class nvrtcResult(IntEnum):  # noqa: N801
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_COMPILATION = 6


@dataclass
class Program:
    source: str
    name: str
    log: bytes = b"\0"
    image: bytes = b""
    ptx: bool = False


def missing() -> str:
    """What the stand-in lacks here for compiling kernels; "" if nothing."""
    if not shutil.which("g++"):
        return "there is no g++"
    return "" if _headers() else "there are no CUDA headers"


def make_module(machine: Machine) -> ModuleType:
    """The module for one machine."""
    module = ModuleType("cuda.bindings.nvrtc")
    module.nvrtcResult = nvrtcResult
    api = Nvrtc(machine)
    for name in dir(api):
        if name.startswith("nvrtc"):
            setattr(module, name, getattr(api, name))
    return module


_OK = nvrtcResult.NVRTC_SUCCESS


class Nvrtc:
    """The functions, named and called like the real ones."""

    def __init__(self, machine: Machine):
        self._machine = machine

    def nvrtcVersion(self):
        if self._machine.architectures is None:
            raise RuntimeError("Failed to dlopen libnvrtc.so.12")
        return _OK, 12, 6

    def nvrtcGetSupportedArchs(self):
        return _OK, list(self._machine.architectures)

    def nvrtcCreateProgram(self, src, name, numHeaders, headers, includeNames):
        assert numHeaders == len(headers) == len(includeNames)
        return _OK, Program(src.decode(), name.decode())

    def nvrtcCompileProgram(self, prog, numOptions, options):
        assert numOptions == len(options)
        target = dict(option.decode().split("=") for option in options)["--gpu-architecture"]
        kind, capability = target.split("_")
        assert int(capability) in self._machine.architectures
        prog.ptx = kind == "compute"
        library, log = _compiled(prog.source, prog.name)
        prog.log = log.encode() + b"\0"
        if library is None:
            return (nvrtcResult.NVRTC_ERROR_COMPILATION,)
        prog.image = MAGIC + os.fsencode(library)
        return (_OK,)

    def nvrtcGetProgramLogSize(self, prog):
        return _OK, len(prog.log)

    def nvrtcGetProgramLog(self, prog, log):
        return _filled(log, prog.log)

    def nvrtcGetCUBINSize(self, prog):
        return _OK, 0 if prog.ptx else len(prog.image)

    def nvrtcGetCUBIN(self, prog, cubin):
        return _filled(cubin, prog.image)

    def nvrtcGetPTXSize(self, prog):
        return _OK, len(prog.image) + 1

    def nvrtcGetPTX(self, prog, ptx):
        return _filled(ptx, prog.image + b"\0")

    def nvrtcDestroyProgram(self, prog):
        prog.source = ""
        return (_OK,)

    def nvrtcGetErrorString(self, result):
        return _OK, nvrtcResult(result).name.encode()


def _filled(buffer: bytes, data: bytes):
    """Write into bytes, as the real one does."""
    assert len(buffer) == len(data)
    ctypes.memmove(id(buffer) + bytes.__basicsize__ - 1, data, len(data))
    return (_OK,)


def _headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    folders = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])]
    return next((folder / "include" for folder in folders if (folder / "include" / "cuda_fp16.h").exists()), None)


def _compiled(source: str, name: str) -> tuple[Path | None, str]:
    """The library of a source, or None; and the compiler's log. One that was made before is used again."""
    tools = [Path(__file__), Path(__file__).with_name("kernel_calls.hpp"), SIMT / "simt.hpp", SIMT / "simt.cpp"]
    digest = hashlib.sha256(b"".join(tool.read_bytes() for tool in tools) + source.encode()).hexdigest()[:16]
    library = BUILD / f"{digest}.so"
    if library.exists():
        return library, ""
    folder = BUILD / f"{digest}.{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        (folder / name).write_text(source)
        kernels = "\n".join(f"STANDIN_KERNEL({kernel})" for kernel in _KERNEL.findall(source))
        main = folder / "main.cpp"
        main.write_text(f'#include "kernel_calls.hpp"\n#include "{name}"\n{kernels}\n')
        includes = ("-I", SIMT, "-I", Path(__file__).parent, "-isystem", _headers())
        command = ["g++", *_FLAGS, *includes, "-o", folder / "made.so", main, SIMT / "simt.cpp"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            return None, done.stderr
        (folder / "made.so").replace(library)
        return library, ""
    finally:
        shutil.rmtree(folder)
