"""What needs an NVIDIA GPU: `make gpu-test`. Elsewhere every test is skipped, with the reason."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl_edge.backends.tensorrt.library import installed_libraries
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BackendError
from support.paths import ROOT

BUILD = ROOT / "build" / "plugin-gpu"
HEADERS = ROOT / ".cache" / "tensorrt"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--plugin-build FOLDER takes the place of compiling on a machine that has no compiler."""
    parser.addoption("--plugin-build", type=Path, help="a build folder of cpp_ext/tensorrt_plugin with its tests")


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where PyTorch sees no GPU of compute capability 8.0 or later."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} sees no CUDA GPU")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(
            "the kernels need compute capability 8.0; this GPU has {}.{}".format(*torch.cuda.get_device_capability())
        )


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest, gpu: None) -> Path:
    """A folder with the plugin for this machine's GPU, and gpu_test beside it."""
    given: Path | None = request.config.getoption("--plugin-build", default=None)
    if given:
        return given
    for tool in ("nvcc", "cmake"):
        if not shutil.which(tool):
            pytest.skip(f"there is no {tool} to build the plugin with")
    # Not "native", which CMake knows from 3.24 on: JetPack 6 has 3.22.
    capability = "{}{}".format(*pytest.importorskip("torch").cuda.get_device_capability())
    options = ["-DQWENVL_PLUGIN_TESTS=ON", f"-DCMAKE_CUDA_ARCHITECTURES={capability}-real"]
    if (HEADERS / "NvInfer.h").exists():
        options.append(f"-DTENSORRT_INCLUDE_DIR={HEADERS}")
    source = ROOT / "cpp_ext" / "tensorrt_plugin"
    subprocess.run(["cmake", "-S", source, "-B", BUILD, *options], check=True)
    targets = ["qwenvl_tensorrt_plugin", "gpu_test"]
    subprocess.run(["cmake", "--build", BUILD, "--parallel", "--target", *targets], check=True)
    return BUILD


@pytest.fixture(scope="session")
def plugin(build: Path) -> Path:
    """libqwenvl_tensorrt_plugin.so."""
    return build / "libqwenvl_tensorrt_plugin.so"


@pytest.fixture(scope="module")
def plan_here(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Builds a bundle's TensorRT plan for this GPU, the plugin included; skips where none can be."""

    from qwenvl_edge_export.tensorrt.build import build as build_plan
    from qwenvl_edge_export.tensorrt.build import choose_limits
    from qwenvl_edge_export.tensorrt.plugin_lowering import needs_plugin

    def make(bundle: Bundle, **limits: int) -> None:
        libraries = installed_libraries()
        if not libraries:
            pytest.skip("TensorRT is not installed")
        try:
            plugin = request.getfixturevalue("plugin") if needs_plugin(libraries[0], bundle) else None
        except BackendError as error:  # TensorRT-RTX has no int8 cache
            pytest.skip(str(error))
        try:
            build_plan(bundle, "local", choose_limits(bundle, **limits), plugin=plugin)
        except BackendError as error:
            if "nothing here builds plans" in str(error):
                pytest.skip(str(error))
            raise

    return make
