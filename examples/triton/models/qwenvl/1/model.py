"""The model that Triton's Python backend loads; its Python needs `qwenvl-edge`."""

from qwenvl_edge.fleet.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
