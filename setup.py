"""Builds the native core; everything else is declared in pyproject.toml.

QWENVL_STRICT_BUILD=1 makes compiler warnings errors; the Makefile sets it for development builds. A released source
package must not fail at a new warning of a new compiler.
"""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# No -march=native: one binary serves every processor of its kind. No fused multiply-add: all give the same result.
FLAGS = ["-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"]
STRICT = ["-Werror"] if os.environ.get("QWENVL_STRICT_BUILD") == "1" else []

FOLDERS = [Path("cpp_ext", name) for name in ("tokenizer", "sampler", "image", "matmul", "attention", "simd", "python")]


def files(*patterns: str) -> list[str]:
    return sorted(str(path) for folder in FOLDERS for pattern in patterns for path in folder.glob(pattern))


ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "qwenvl_edge._core",
            files("*.cpp"),
            include_dirs=["cpp_ext"],
            depends=files("*.hpp", "*.inc"),
            cxx_std=17,
            extra_compile_args=FLAGS + STRICT,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
