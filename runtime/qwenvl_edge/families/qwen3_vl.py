"""Qwen3-VL: a learned position table in the vision tower, timestamps in clips, places on the grid 0..1000.

Its features come with further ones, which are added to the first decoder layers ("deepstack").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from qwenvl_edge.bundle.contract import POSITION_INDEX, POSITION_WEIGHT
from qwenvl_edge.families.boxes import to_pixels
from qwenvl_edge.families.json_vl import JsonVLFamily
from qwenvl_edge.families.picture_sizes import Bounds, whole_clip_size
from qwenvl_edge.families.pieces import PictureLayout, Piece, Shown
from qwenvl_edge.families.places import GRID
from qwenvl_edge.families.readers import Points
from qwenvl_edge.families.vision_tables import interpolation


class Qwen3VLFamily(JsonVLFamily):
    """Qwen3-VL for one configuration, Instruct or Thinking."""

    name = "qwen3_vl"
    title = "Qwen3-VL"
    default_system = None
    grid = GRID
    number = "0|[1-9][0-9]{0,2}|1000"

    def _frame_size(self, size: tuple[int, int], frames: int, bounds: Bounds) -> tuple[int, int]:
        depth = self.config.temporal_patch_size
        return whole_clip_size(*size, frames, -(-frames // depth) * depth, bounds)

    def _time_steps(self, layout: PictureLayout) -> Sequence[int]:
        """Always 0: each patch in time is a span of its own, and the time is written before it."""
        return [0] * layout.grid[0]

    def _clip(self, shown: Shown) -> list[Piece]:
        """A pair of tags around all, as transformers 5 writes it; within it a time and a picture for each patch."""
        frames, rows, columns = shown.layout.grid
        depth, count = self.config.temporal_patch_size, rows * columns
        padded = (*shown.times, *[shown.times[-1]] * (frames * depth - len(shown.times)))
        pieces: list[Piece] = [self.special_tokens["<|vision_start|>"]]
        for frame in range(frames):
            time = (padded[frame * depth] + padded[(frame + 1) * depth - 1]) / 2
            visual = self._visual(shown, "<|video_pad|>", first=frame * count, count=count)
            pieces += [f"<{time:.1f} seconds>", *visual]
        return [*pieces, self.special_tokens["<|vision_end|>"]]

    def _tables(self, rows: int, columns: int) -> dict[str, npt.NDArray[Any]]:
        if not self.config.position_side:
            return {}
        index, weight = interpolation(rows, columns, self.config.merge_size, self.config.position_side)
        return {POSITION_INDEX: index, POSITION_WEIGHT: weight}

    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """See Family.grounding_items."""
        return [{"text": f'Locate every instance of "{phrase}" and report bbox coordinates in JSON format.'}]

    def pointing_prompt(self, phrase: str) -> str:
        """See Family.pointing_prompt."""
        return f'Locate every instance of "{phrase}" and report point coordinates in JSON format.'

    def to_pixels(
        self, points: Points, size: tuple[int, int], layout: PictureLayout
    ) -> tuple[tuple[float, float], ...]:
        """See Family.to_pixels; the points lie on the grid."""
        return to_pixels(points, size)
