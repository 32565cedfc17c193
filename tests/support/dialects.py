"""The decoder dialects as test parameters; an ONNX Runtime too old for one skips it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnxruntime as ort
import pytest

from qwenvl_edge.backends.onnxruntime.session import can_run
from qwenvl_edge.bundle.contract import NATIVE, ONNXRUNTIME, STANDARD

RUNNABLE = {dialect for dialect in (STANDARD, ONNXRUNTIME) if can_run(dialect)}
_TOO_OLD = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
_NO_KERNELS = pytest.mark.skipif(not can_run(NATIVE), reason="the native decoder needs AVX2 or Arm's dot products")
DIALECTS = [pytest.param(STANDARD, marks=_TOO_OLD), ONNXRUNTIME]
OF_BLOCKS = [*DIALECTS, pytest.param(NATIVE, marks=_NO_KERNELS)]
"""Those of a bundle with int4 or int8 weights in blocks."""


def cache_dtype(value: ort.NodeArg) -> type[np.generic]:
    """NumPy's type of a cache input."""
    return {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}[value.type]


def run_by_default(decoders: Iterable[str]) -> set[str]:
    """Of a bundle's dialects those that this machine verifies it in."""
    return {dialect for dialect in decoders if can_run(dialect)}
