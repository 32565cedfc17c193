"""M-RoPE (arXiv 2409.12191): positions on three axes, time, rows and columns of a picture.

A word has the same position on all three; the tokens of a picture share its time and differ in row and column. What
comes after a picture or clip continues one past its largest position. So a token's
position depends only on what is before it, and a computed prefix stays valid whatever comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from qwenvl_edge.families.base import FloatArray, Positions, RotaryRows
from qwenvl_edge.families.pieces import PictureLayout, Span
from qwenvl_edge.families.positions import RotaryTable

IntArray = npt.NDArray[np.int64]
TimeSteps = Callable[[PictureLayout], Sequence[int]]
"""Layout -> time of each of its frames, counted from the first one's."""


def positions_of(length: int, spans: Sequence[Span], time_steps: TimeSteps) -> IntArray:
    """Return the positions [3, length] of a prompt's tokens: time, row, column."""
    positions = np.empty((3, length), np.int64)
    at = following = 0
    for span in spans:
        words = span.start - at
        positions[:, at : span.start] = following + np.arange(words)
        following += words
        _, rows, columns = span.layout.grid
        frames = slice(span.first // (rows * columns), (span.first + span.length) // (rows * columns))
        times = np.asarray(time_steps(span.layout)[frames], np.int64)
        place = np.meshgrid(times - times[0], np.arange(rows), np.arange(columns), indexing="ij")
        at = span.start + span.length
        positions[:, span.start : at] = following + np.stack(place).reshape(3, -1)
        following = int(positions[:, span.start : at].max()) + 1
    positions[:, at:] = following + np.arange(length - at)
    return positions


def contiguous_axes(sections: Sequence[int]) -> IntArray:
    """Return the axis of each frequency [D / 2]: first those of time, then of rows, then of columns."""
    return np.repeat(np.arange(3), sections)


def interleaved_axes(sections: Sequence[int]) -> IntArray:
    """Return the axis of each frequency [D / 2]: time, row, column in turn; those left over are of time."""
    number = np.arange(sum(sections))
    axes = np.zeros_like(number)
    for axis in (1, 2):
        axes[(number % 3 == axis) & (number < 3 * sections[axis])] = axis
    return axes


class MRope(Positions):
    """Positions of a prompt and of the tokens after it, which go on one by one on all axes.

    Args:
        positions: [3, T] of the prompt.
        axes: axis of each frequency [D / 2].
        table: cosines and sines of plain positions.

    delta: what is added to the index of a token after the prompt to get its position.
    """

    def __init__(self, positions: IntArray, axes: IntArray, table: RotaryTable) -> None:
        self.length = positions.shape[1]
        self.delta = int(positions.max(initial=-1)) + 1 - self.length
        self._positions = positions
        self._axes = axes
        self._table = table
        self._prompt: tuple[FloatArray, FloatArray] | None = None

    @property
    def key(self) -> Hashable:
        """Always the same: two prompts that begin alike have the same positions there."""
        return "mrope"

    def rows(self, start: int, count: int) -> RotaryRows:
        """See Positions.rows."""
        if start >= self.length:
            cos, sin = self._table.rows(start + self.delta, count)
            return RotaryRows(cos[None], sin[None], None)
        if self._prompt is None:
            self._prompt = self._combined()
        cos, sin = (table[start : start + count] for table in self._prompt)
        if beyond := start + count - self.length if start + count > self.length else 0:
            after = self._table.rows(self.length + self.delta, beyond)
            cos, sin = np.concatenate([cos, after[0]]), np.concatenate([sin, after[1]])
        return RotaryRows(cos[None], sin[None], None)

    def _combined(self) -> tuple[FloatArray, FloatArray]:
        """Cosines and sines [T, D / 2] of the prompt, each frequency at the position of its own axis."""
        cos, sin = self._table.rows(0, self.length + self.delta)
        index = self._positions[self._axes].T
        frequency = np.arange(len(self._axes))
        return cos[index, frequency], sin[index, frequency]
