"""Rotary tables (RoPE, Su et al., arXiv 2104.09864): the cosines and sines of sequence positions 0, 1, 2, ..."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_FIRST_ROWS = 512


class RotaryTable:
    """Cosines and sines [rows, head_dim / 2] float32 of one base; grows as rows are asked for, and keeps them.

    Safe to share by threads: a longer table replaces a shorter one whole, and has the same rows.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        # The published code computes in float32; at position 8,000 the last bit of a frequency is 5e-4 radians. Powers
        # are taken in float64 and rounded, which gives PyTorch's float32 values (all but one or two of a table).
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        powers = (float(np.float32(base)) ** exponents.astype(np.float64)).astype(np.float32)
        self._frequencies = np.float32(1.0) / powers
        self._known = self._compute(_FIRST_ROWS)

    def rows(self, start: int, count: int) -> tuple[FloatArray, FloatArray]:
        """Return cosines and sines [count, head_dim / 2] of the positions from `start` on, as read-only views."""
        known, end = self._known, start + count
        if end > len(known[0]):
            known = self._known = self._compute(max(end, 2 * len(known[0])))
        cos, sin = known
        return cos[start:end], sin[start:end]

    def _compute(self, count: int) -> tuple[FloatArray, FloatArray]:
        angles = np.arange(count, dtype=np.float32)[:, None] * self._frequencies
        tables = np.cos(angles), np.sin(angles)
        for table in tables:
            table.flags.writeable = False
        return tables
