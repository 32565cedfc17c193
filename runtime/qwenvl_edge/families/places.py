"""Boxes, quads and points in pixels of the original picture, as a reply has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

GRID = 1000
"""Steps of the grid over each side of a picture on which most families write: a value g lies at g / 1000 * side."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the original picture number `image`; x1 <= x2, y1 <= y2; label "" if it has none."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    image: int

    def to_grid(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (x1, y1, x2, y2) on the grid of a picture of `size` (width, height), for a message's "box" item."""
        (x1, y1), (x2, y2) = to_grid([(self.x1, self.y1), (self.x2, self.y2)], size)
        return x1, y1, x2, y2


@dataclass(frozen=True)
class Quad:
    """A labelled quadrilateral: four (x, y) corners in pixels of the original picture number `image`."""

    label: str
    points: tuple[tuple[float, float], ...]
    image: int


@dataclass(frozen=True)
class Point:
    """A labelled place (x, y) in pixels of the original picture number `image`; label "" if it has none."""

    label: str
    x: float
    y: float
    image: int


Place: TypeAlias = "Box | Quad | Point"


@dataclass(frozen=True)
class Ref:
    """A phrase that the answer marked, with the places that follow it directly; often one box, sometimes none."""

    label: str
    boxes: tuple[Box, ...]
    quads: tuple[Quad, ...]
    points: tuple[Point, ...] = ()


def to_grid(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Scale pixels of a picture of `size` (width, height) to the nearest grid points, kept within 0..999."""
    width, height = size

    def clamp(value: float, side: int) -> int:
        return min(max(round(value / side * GRID), 0), GRID - 1)

    return tuple((clamp(x, width), clamp(y, height)) for x, y in points)
