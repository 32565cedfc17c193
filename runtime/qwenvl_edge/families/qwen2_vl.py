"""Qwen2-VL (arXiv 2409.12191): pictures of any size, and places in tags on the grid 0..1000."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from qwenvl_edge.families.boxes import Markup, MarkupFamily
from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge.families.picture_sizes import Bounds, frame_size
from qwenvl_edge.families.pieces import PictureLayout


class Qwen2VLFamily(MarkupFamily, DynamicVLFamily):
    """Qwen2-VL for one configuration."""

    name = "qwen2_vl"
    title = "Qwen2-VL"
    default_system = "You are a helpful assistant."
    reading: ClassVar[Mapping[str, str]] = {
        "en": "Read all the text in the image and give the place of each line.",
        "zh": "识别图中所有文字并给出每一行的位置。",
    }
    markup = Markup(
        ref=("<|object_ref_start|>", "<|object_ref_end|>"),
        box=("<|box_start|>", "<|box_end|>"),
        quad=("<|quad_start|>", "<|quad_end|>"),
    )
    coordinate = "0|[1-9][0-9]{0,2}|1000"

    def _frame_size(self, size: tuple[int, int], frames: int, bounds: Bounds) -> tuple[int, int]:
        return frame_size(*size, frames, bounds)

    def _time_steps(self, layout: PictureLayout) -> Sequence[int]:
        return range(layout.grid[0])

    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """See Family.grounding_items; the phrase in its tags, as in the training's questions."""
        return [{"text": "Give the bounding box of "}, {"ref": phrase}, {"text": "."}]

    def pointing_prompt(self, phrase: str) -> str:
        """See Family.pointing_prompt."""
        return f"Point to {phrase} and give the coordinates."
