"""Positions of the first Qwen-VL: dynamic NTK, which stretches the rotary base for long prompts, and log-n attention.

Keys are cached after rotary embedding, so a cache is valid for one factor. It is chosen from the prompt's length (as in
the published code) and kept through decode, also when that runs past the length it was chosen for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from qwenvl_edge.families.base import FloatArray, Positions, RotaryRows
from qwenvl_edge.families.positions import RotaryTable


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
    logarithms: FloatArray = np.log(np.arange(start + 1, start + count + 1, dtype=np.float32))
    scale: FloatArray = np.maximum(logarithms * np.float32(1.0 / math.log(seq_length)), np.float32(1.0))
    return scale
