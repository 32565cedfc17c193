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

HEADERS = [*map(str, Path("cpp_ext/include").glob("**/*.hpp")), *map(str, Path("cpp_ext/src").glob("*.inc"))]

ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "qwenvl_edge._core",
            sorted(map(str, Path("cpp_ext/src").glob("*.cpp"))),
            include_dirs=["cpp_ext/include"],
            depends=HEADERS,
            cxx_std=17,
            extra_compile_args=FLAGS + STRICT,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
