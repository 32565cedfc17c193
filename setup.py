"""Builds the native core; everything else is declared in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "qwenvl_edge._core",
            sorted(glob("cpp_ext/src/*.cpp")),
            include_dirs=["cpp_ext/include"],
            depends=sorted(glob("cpp_ext/include/**/*", recursive=True)),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-ffp-contract=off"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
