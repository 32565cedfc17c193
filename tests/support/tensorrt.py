"""TensorRT as tests of builds need it: the installed TensorRT-RTX, and the name of any other release."""

from __future__ import annotations

from types import SimpleNamespace

from qwenvl_edge.backends.tensorrt.library import Library, installed_libraries
from qwenvl_edge.bundle.engines import TENSORRT, TENSORRT_RTX


def installed_rtx() -> Library:
    """TensorRT-RTX, which must be installed."""
    return next(each for each in installed_libraries() if each.api == TENSORRT_RTX)


def release(version: str = "10.14.1.48", api: str = TENSORRT) -> Library:
    """A library of a version that builds nothing."""
    return Library(api, SimpleNamespace(__version__=version), None)
