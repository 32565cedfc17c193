"""Common parts of Qwen2.5-VL and Qwen3-VL: they write places as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge.families.json_places import JsonReader, json_box_grammar
from qwenvl_edge.families.pieces import PictureLayout, Piece
from qwenvl_edge.families.readers import Points
from qwenvl_edge.families.tools import CALL_TAGS


class JsonVLFamily(DynamicVLFamily):
    """A family whose answers are lists of {"bbox_2d": [x1, y1, x2, y2], "label": ...} or with "point_2d".

    grid: the largest coordinate, None where they are pixels. number: a regular expression of a coordinate.
    """

    reading: ClassVar[Mapping[str, str]] = {
        "en": "Spot all the text in the image line by line, and output it in JSON format.",
        "zh": "逐行定位图中所有文字,以JSON格式输出。",
    }
    grid: int | None
    number: str

    @property
    def markup_tags(self) -> tuple[str, ...]:
        """See Family.markup_tags; those of tool calls alone, where the template has them."""
        return CALL_TAGS if self.config.tools else ()

    @property
    def closing_tags(self) -> tuple[str, ...]:
        """See Family.closing_tags."""
        return self.markup_tags[1:]

    def region(
        self, label: str | None, grid_boxes: Sequence[Points], layout: PictureLayout | None = None
    ) -> list[Piece]:
        """See Family.region."""
        if not grid_boxes:
            return [label or ""]
        named = {} if label is None else {"label": label}
        items = [{"bbox_2d": [v for point in self._written(box, layout) for v in point]} | named for box in grid_boxes]
        return [json.dumps(items[0] if len(items) == 1 else items, ensure_ascii=False)]

    def _written(self, points: Points, layout: PictureLayout | None) -> Points:
        """Return points on the grid 0..999 as the model writes them."""
        return points

    def reader(self) -> JsonReader:
        """See Family.reader."""
        return JsonReader(self.grid, CALL_TAGS)

    def box_grammar(self) -> str:
        """See Family.box_grammar."""
        return json_box_grammar(self.number)
