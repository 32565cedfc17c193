"""An answer: clean text, places in the pictures, history to go on from, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.boxes import Box, Quad, Ref
from qwenvl_edge.inputs.messages import Turn
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.replies.drawing import draw_shapes
from qwenvl_edge.replies.stats import Stats

if TYPE_CHECKING:
    from PIL import Image

FinishReason: TypeAlias = Literal["stop", "stop_string", "length", "context", "deadline", "cancelled"]


@dataclass(frozen=True)
class Reply:
    """An answer.

    text: the words, grounding markup removed. raw_text: with markup, as the model wrote it.
    boxes, quads: in pixels of the original pictures; their `image` indexes `pictures`, so "Picture 1" is 0.
    refs: the phrases that the answer marked, each with its boxes and quads.
    pictures: those the answer is about: this turn's, or if it has none, those of the latest turn that has some.
    malformed: markup that names no place (unclosed, off the grid, or no picture to place it in).
    history: the turns so far, to be given to the next call.
    finish_reason: "stop" (the model ended), "stop_string" (one of `stop` came), "length" (max_new_tokens), "context"
        (no room left), "deadline" or "cancelled".
    complete: whether raw_text is the whole form that a constraint asked for, so that it parses; None without one.
    """

    text: str
    raw_text: str
    boxes: tuple[Box, ...]
    quads: tuple[Quad, ...]
    refs: tuple[Ref, ...]
    malformed: tuple[str, ...]
    pictures: tuple[Picture, ...] = field(repr=False)
    history: tuple[Turn, ...] = field(repr=False)
    finish_reason: FinishReason
    stats: Stats
    complete: bool | None = None

    def draw(self, image: int | None = None) -> Image.Image:
        """Return a copy of picture number `image` with its boxes and quads (None: the first with some, or the last).

        Raises:
            ImageError: there is no such picture.
        """
        if image is None:
            placed = [box.image for box in self.boxes] + [quad.image for quad in self.quads]
            image = min(placed, default=len(self.pictures) - 1)
        if not 0 <= image < len(self.pictures):
            raise ImageError(f"there is no picture {image} to draw on: the answer is about {len(self.pictures)}.")
        boxes = [box for box in self.boxes if box.image == image]
        quads = [quad for quad in self.quads if quad.image == image]
        return draw_shapes(self.pictures[image].to_pil(), boxes, quads)
