"""Parts of messages, beside pictures and clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from qwenvl_edge.errors import PromptError
from qwenvl_edge.families.places import GRID
from qwenvl_edge.inputs.clips import Clip
from qwenvl_edge.inputs.pictures import Picture


@dataclass(frozen=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True)
class ToolResult:
    """Result of a tool."""

    text: str


@dataclass(frozen=True)
class Region:
    """A reference, boxes or quads that the user points at: grid points 0..999; `label` None for shapes without one."""

    label: str | None
    boxes: tuple[tuple[tuple[int, int], ...], ...] = ()


Part: TypeAlias = "Text | Region | ToolResult | Picture | Clip"


def parse_boxes(value: Any) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Turn a box item's value, (x1, y1, x2, y2) or a list of them, into corners. Raises PromptError."""
    boxes = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if boxes and not isinstance(boxes[0], Sequence):
        boxes = [boxes]
    for box in boxes:
        numbers = isinstance(box, Sequence) and len(box) == 4 and all(isinstance(v, int) for v in box)
        if not numbers or not all(0 <= v < GRID for v in box):
            raise PromptError(f"a box is {box!r}; give four integers (x1, y1, x2, y2) on the grid 0..{GRID - 1}.")
    if not boxes:
        raise PromptError(f"a box item holds {value!r}; give (x1, y1, x2, y2) or a list of them.")
    return tuple(((x1, y1), (x2, y2)) for x1, y1, x2, y2 in boxes)


def parts_after_pictures(parts: Sequence[Part]) -> tuple[Text | Region, ...]:
    """Return the words and regions after the last picture: what an answer to a raw prompt may continue."""
    after: list[Text | Region] = []
    for part in parts:
        if isinstance(part, (Picture, Clip)):
            after.clear()
        elif isinstance(part, (Text, Region)):
            after.append(part)
    return tuple(after)
