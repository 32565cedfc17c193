"""Loaded by Triton's Python backend, into whose Python `qwenvl-edge` is installed."""

from qwenvl_edge.fleet.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
