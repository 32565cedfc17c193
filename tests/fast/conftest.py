"""tests/fast alone (`make check`) is a process without torch, onnx, the exporter and compilers.

Other rooms need those, so nothing is refused in a process that runs them too; `make test` runs this room by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.room import refuse

PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "transformers", "qwenvl_edge_export")
PROGRAMS = ("c++", "g++", "gcc", "cc", "clang", "clang++", "cmake", "ninja", "make", "nvcc")
ALONE = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    folder = Path(__file__).parent
    paths = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    config.stash[ALONE] = all(path.is_relative_to(folder) for path in paths)
    if config.stash[ALONE]:
        refuse(PACKAGES, PROGRAMS)


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> None:
    """Skips where other rooms' tests run in this process."""
    if not request.config.stash.get(ALONE, False):
        pytest.skip("other rooms' tests run in this process too; run tests/fast alone")
