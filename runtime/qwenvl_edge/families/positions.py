"""Positions: rotary tables (RoPE, Su et al., arXiv 2104.09864), and those of the first Qwen-VL.

Qwen-VL's are dynamic NTK, which stretches the rotary base for long prompts, and log-n attention. Keys are cached after
rotary embedding, so a cache is valid for one factor. It is chosen from the prompt's length (as in the published code)
and kept through decode, also when that runs past the length it was chosen for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from qwenvl_edge.families.base import FloatArray, Positions, RotaryRows

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


@dataclass(frozen=True)
class DynamicNTK(Positions):
    """Positions 0, 1, 2, ... under one factor; logn: the length from which queries are scaled, None for no log-n."""

    length: int
    factor: float
    table_of_factor: RotaryTable = field(repr=False, compare=False)
    logn: int | None

    @property
    def key(self) -> float:
        """The factor."""
        return self.factor

    def rows(self, start: int, count: int) -> RotaryRows:
        """See Positions.rows."""
        cos, sin = self.table_of_factor.rows(start, count)
        scale = None if self.logn is None else logn_scale(self.logn, start, count)[None]
        return RotaryRows(cos[None], sin[None], scale)


def ntk_factor(length: int, seq_length: int) -> float:
    """Dynamic NTK factor of a prompt of `length` tokens: 1 up to seq_length, 3 up to twice that, then 7, 15, ..."""
    exponent: int = math.ceil(math.log2(max(length, 1) / seq_length) + 1)
    return max(2.0**exponent - 1, 1.0)


def stretched_base(base: float, factor: float, head_dim: int) -> float:
    """Rotary base under a factor."""
    stretched: float = base * factor ** (head_dim / (head_dim - 2))
    return stretched


def logn_scale(seq_length: int, start: int, count: int) -> FloatArray:
    """max(1, log(p + 1) / log(seq_length)) of the positions p from `start` on, [count] float32."""
    scale: FloatArray
    if start + count < seq_length:
        scale = np.empty(count, np.float32)
        scale.fill(1.0)  # what the formula gives, without its operations at every token
        return scale
    logarithms: FloatArray = np.log(np.arange(start + 1, start + count + 1, dtype=np.float32))
    scale = np.maximum(logarithms * np.float32(1.0 / math.log(seq_length)), np.float32(1.0))
    return scale
