"""Boxes and quads: from the grid that a model writes to pixels of the original picture, and back.

A grid value g lies at g / 1000 * side pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_edge.families.markup import GridShape

GRID = 1000


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
class Ref:
    """A phrase that the answer marked, with the places that follow it directly; often one box, sometimes none."""

    label: str
    boxes: tuple[Box, ...]
    quads: tuple[Quad, ...]


def to_pixels(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Scale grid points to pixels of a picture of `size` (width, height)."""
    width, height = size
    return tuple((x / GRID * width, y / GRID * height) for x, y in points)


def to_grid(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Scale pixels of a picture of `size` (width, height) to the nearest grid points, kept within 0..999."""
    width, height = size

    def clamp(value: float, side: int) -> int:
        return min(max(round(value / side * GRID), 0), GRID - 1)

    return tuple((clamp(x, width), clamp(y, height)) for x, y in points)


def place(shapes: Sequence[GridShape], images: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Box | Quad]:
    """Scale grid shapes to pixels; `images[i]` is the picture of shape i, `sizes` every picture's (width, height)."""
    placed: list[Box | Quad] = []
    for shape, image in zip(shapes, images, strict=True):
        points = to_pixels(shape.points, sizes[image])
        if len(points) == 4:
            placed.append(Quad(shape.label, points, image))
        else:
            (xa, ya), (xb, yb) = points
            placed.append(Box(shape.label, min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb), image))
    return placed


def boxes_of(places: Iterable[Box | Quad]) -> tuple[Box, ...]:
    """The boxes among some places."""
    return tuple(place for place in places if isinstance(place, Box))


def quads_of(places: Iterable[Box | Quad]) -> tuple[Quad, ...]:
    """The quads among some places."""
    return tuple(place for place in places if isinstance(place, Quad))


def refs_of(labels: Mapping[int, str], shapes: Sequence[GridShape], places: Sequence[Box | Quad]) -> tuple[Ref, ...]:
    """Group places (those of `shapes`, in order) by the labels that they follow."""
    found = []
    for number, label in labels.items():
        own = [place for shape, place in zip(shapes, places, strict=True) if shape.ref == number]
        found.append(Ref(label, boxes_of(own), quads_of(own)))
    return tuple(found)
