"""The TensorRT driver on the stand-in for CUDA and TensorRT."""

from __future__ import annotations

import shutil

import pytest

from qwenvl_edge.backends.cuda.device import Cuda
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.tensorrt import library as tensorrt_library
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.backends.tensorrt.library import installed_libraries
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import Plan
from support.standin import plans
from support.standin.machine import Machine


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory) -> Bundle:
    """A bundle with a plan; tests that change it take `own_bundle`."""
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    bundle = Bundle.open(folder)
    plans.write_plan(bundle)
    return bundle


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Bundle:
    shutil.copytree(bundle.path, tmp_path / "own")
    return Bundle.open(tmp_path / "own")


@pytest.fixture(scope="module")
def reference(bundle) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(bundle, threads=1, dialect=STANDARD)


@pytest.fixture
def open_backend(monkeypatch):
    """Opens the plan of a bundle on a new stand-in machine; returns the backend and the machine."""

    monkeypatch.setattr(tensorrt_library, "_registered", set())  # a process of its own, as far as plugins go

    def open_it(bundle: Bundle, **options):
        machine = Machine(**options)
        plans.install(monkeypatch, machine)
        return TensorRTBackend(bundle, Plan.open(bundle, "local"), installed_libraries()[0], Cuda.open()), machine

    return open_it


@pytest.fixture
def backend(bundle, open_backend):
    return open_backend(bundle)[0]
