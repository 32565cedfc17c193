"""Qwen2.5-VL (arXiv 2502.13923): attention windows, time in seconds, places in pixels of the resized picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.contract import WINDOW_BACK, WINDOW_GATHER, WINDOW_KEYS
from qwenvl_edge.families.json_vl import JsonVLFamily
from qwenvl_edge.families.picture_sizes import Bounds, frame_size
from qwenvl_edge.families.pieces import PictureLayout
from qwenvl_edge.families.places import GRID
from qwenvl_edge.families.readers import Points
from qwenvl_edge.families.vision_tables import windows


class Qwen25VLFamily(JsonVLFamily):
    """Qwen2.5-VL for one configuration."""

    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    default_system = "You are a helpful assistant."
    grid = None
    number = "0|[1-9][0-9]{0,4}"

    def _frame_size(self, size: tuple[int, int], frames: int, bounds: Bounds) -> tuple[int, int]:
        return frame_size(*size, frames, bounds)

    def _seconds(self, times: Sequence[float]) -> float:
        """Seconds between two patches of frames that come at an even pace."""
        pace = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return self.config.temporal_patch_size * pace

    def _time_steps(self, layout: PictureLayout) -> Sequence[int]:
        # The published code multiplies in float32 and cuts off.
        step = np.float32(self.config.tokens_per_second * layout.seconds)
        return [int(np.float32(frame) * step) for frame in range(layout.grid[0])]

    def _tables(self, rows: int, columns: int) -> dict[str, npt.NDArray[Any]]:
        if not self.config.window_size:
            return {}
        cut = windows(rows, columns, self.config.merge_size, self.config.window_size // self.config.factor)
        return {WINDOW_GATHER: cut.gather, WINDOW_KEYS: cut.keys, WINDOW_BACK: cut.back}

    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """See Family.grounding_items."""
        return [{"text": f"Locate {phrase}, output its bbox coordinates using JSON format."}]

    def pointing_prompt(self, phrase: str) -> str:
        """See Family.pointing_prompt."""
        return f"Point to {phrase}, output its point coordinates using JSON format."

    def _resized(self, layout: PictureLayout) -> tuple[int, int]:
        """Return the (width, height) of the picture that the model sees."""
        _, rows, columns = layout.grid
        return columns * self.config.factor, rows * self.config.factor

    def _written(self, points: Points, layout: PictureLayout | None) -> Points:
        if layout is None:
            return points
        width, height = self._resized(layout)
        return [(round(x / GRID * width), round(y / GRID * height)) for x, y in points]

    def to_pixels(
        self, points: Points, size: tuple[int, int], layout: PictureLayout
    ) -> tuple[tuple[float, float], ...]:
        """See Family.to_pixels; points a little outside are put on the edge."""
        width, height = self._resized(layout)
        return tuple(
            (min(max(x, 0), width) / width * size[0], min(max(y, 0), height) / height * size[1]) for x, y in points
        )
