"""The decoder dialects as test parameters; an ONNX Runtime too old for one skips it."""

from __future__ import annotations

import pytest

from qwenvl_edge.backends.onnxruntime_session import ONNXRUNTIME, STANDARD, can_run

RUNNABLE = {dialect for dialect in (STANDARD, ONNXRUNTIME) if can_run(dialect)}
_TOO_OLD = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
DIALECTS = [pytest.param(STANDARD, marks=_TOO_OLD), ONNXRUNTIME]
