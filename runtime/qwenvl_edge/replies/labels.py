"""Where labels go: beside their shape, inside the picture, none over another where there is room."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rectangle: TypeAlias = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels; x2 and y2 lie outside
_IntArray: TypeAlias = "npt.NDArray[np.int64]"


def place_labels(
    shapes: Sequence[Rectangle], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[Rectangle]:
    """Return a rectangle for each label, in the order of the shapes.

    One label after another takes the first place that no earlier one covers: above its shape, below, inside along the
    top, inside along the bottom, else the nearest one in the picture. Where there is none, it stands where it covers
    least.

    Args:
        shapes: what the labels belong to.
        sizes: width and height of the labels, no more than the picture's.
        picture: its width and height.
    """
    placed = np.empty((0, 4), np.int64)
    for shape, size in zip(shapes, sizes, strict=True):
        near = _inside(list(_beside(shape, size)), size, picture)
        covered = _covered(near, size, placed)
        best = near[np.argmin(covered)]
        if covered.min():
            free = _free(size, picture, placed)
            if len(free):
                best = free[np.argmin(np.abs(free - near[0]).sum(axis=1))]
        placed = np.vstack([placed, [*best, *(best + size)]])
    return [(int(x1), int(y1), int(x2), int(y2)) for x1, y1, x2, y2 in placed]


def _beside(shape: Rectangle, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Top left corners of a label along a shape's edges, the most welcome first."""
    x1, y1, x2, y2 = shape
    width, height = size
    for y in (y1 - height, y2, y1, y2 - height):
        for x in (x1, x2 - width):
            yield x, y


def _inside(corners: Sequence[tuple[int, int]], size: tuple[int, int], picture: tuple[int, int]) -> _IntArray:
    """Corners [N, 2] moved sideways into the picture, those left out that stick out above or below; at least one."""
    room = np.subtract(picture, size)
    moved = np.array(corners, np.int64)
    moved[:, 0] = np.clip(moved[:, 0], 0, room[0])
    fits = (moved[:, 1] >= 0) & (moved[:, 1] <= room[1])
    return moved[fits] if fits.any() else np.clip(moved[:1], 0, room)


def _covered(corners: _IntArray, size: tuple[int, int], placed: _IntArray) -> _IntArray:
    """How many pixels [N] of earlier labels a label at each corner [N, 2] covers."""
    low = np.maximum(corners[:, None], placed[None, :, :2])
    high = np.minimum(corners[:, None] + size, placed[None, :, 2:])
    covered: _IntArray = np.maximum(high - low, 0).prod(axis=2).sum(axis=1)
    return covered


def _free(size: tuple[int, int], picture: tuple[int, int], placed: _IntArray) -> _IntArray:
    """Corners [N, 2] where a label covers none: pushed up and to the left, any free place ends at one of these."""
    edges = [
        np.unique([0, *(edge for edge in placed[:, 2 + axis] if edge + size[axis] <= picture[axis])]) for axis in (0, 1)
    ]
    corners = np.array(list(itertools.product(*edges)), np.int64)
    free: _IntArray = corners[_covered(corners, size, placed) == 0]
    return free
