"""Qwen2-VL (arXiv 2409.12191): pictures of any size, and places in tags on the grid 0..1000."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from qwenvl_edge.families.base import Points
from qwenvl_edge.families.boxes import Markup, MarkupReader, box_grammar, format_points, to_pixels
from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge.families.picture_sizes import Bounds, frame_size
from qwenvl_edge.families.pieces import PictureLayout, Piece


class Qwen2VLFamily(DynamicVLFamily):
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

    @property
    def markup_tags(self) -> tuple[str, ...]:
        """See Family.markup_tags."""
        return self.markup.tags

    @property
    def closing_tags(self) -> tuple[str, ...]:
        """See Family.closing_tags."""
        return self.markup.closing

    def region(
        self, label: str | None, grid_boxes: Sequence[Points], layout: PictureLayout | None = None
    ) -> list[Piece]:
        """See Family.region."""
        pieces = [] if label is None else self._tagged(self.markup.ref, label)
        return pieces + [piece for box in grid_boxes for piece in self._tagged(self.markup.box, format_points(box))]

    def _tagged(self, tags: tuple[str, str], text: str) -> list[Piece]:
        return [self.special_tokens[tags[0]], text, self.special_tokens[tags[1]]]

    def reader(self) -> MarkupReader:
        """See Family.reader."""
        return MarkupReader(self.markup)

    def box_grammar(self) -> str:
        """See Family.box_grammar."""
        return box_grammar(self.markup, self.special_tokens, "0|[1-9][0-9]{0,2}|1000")

    def to_pixels(
        self, points: Points, size: tuple[int, int], layout: PictureLayout
    ) -> tuple[tuple[float, float], ...]:
        """See Family.to_pixels; the points lie on the grid."""
        return to_pixels(points, size)
