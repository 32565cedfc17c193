"""Sizes that pictures and clips are resized to in the families whose pictures keep their shape.

A side becomes a multiple of a token's side, and the area lies between two limits; the shape is kept only nearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwenvl_edge.errors import ImageError, PromptError
from qwenvl_edge.families.pieces import PixelLimits

_MOST_RATIO = 200  # of the sides
_FRAME_TOKENS = 768  # the most of a clip's frame, however short the clip is
_FRAME_SLACK = 1.05  # a frame may take so much more than the least, however long the clip is


@dataclass(frozen=True)
class Bounds:
    """Least and most pixels after resizing, for tokens of `factor` x `factor` pixels."""

    factor: int
    min_pixels: int
    max_pixels: int

    def within(self, limits: PixelLimits) -> Bounds:
        """Return the bounds with a caller's limits, each of which moves the other bound if it lies beyond it.

        Raises:
            PromptError: a limit is no whole number, the two contradict each other, or no token is left.
        """
        low, high = limits.min_pixels, limits.max_pixels
        for name, value in (("min_pixels", low), ("max_pixels", high)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise PromptError(f"{name} is {value!r}; give a whole number of pixels of at least 1.")
        if high is not None and high < self.factor**2:
            raise PromptError(
                f"max_pixels is {high}, which leaves no token: one stands for {self.factor}x{self.factor} pixels; give "
                f"at least {self.factor**2}."
            )
        if low is not None and high is not None and low > high:
            raise PromptError(f"min_pixels is {low}, more than max_pixels, {high}; exchange them.")
        low = min(self.min_pixels, high or self.min_pixels) if low is None else low
        return Bounds(self.factor, low, max(self.max_pixels, low) if high is None else high)

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest picture."""
        return self.max_pixels // self.factor**2


def picture_size(width: int, height: int, bounds: Bounds) -> tuple[int, int]:
    """Return the (width, height) that a picture is resized to.

    Raises:
        ImageError: one side is more than 200 times the other.
    """
    check_ratio(width, height, "picture")
    return _resized(width, height, width * height, bounds)


def check_ratio(width: int, height: int, what: str) -> None:
    """Check the sides of a picture or clip. Raises ImageError if one is more than 200 times the other."""
    if max(width, height) > _MOST_RATIO * min(width, height):
        raise ImageError(
            f"the {what} has {width}x{height} pixels: one side is more than {_MOST_RATIO} times the other; cut it."
        )


def frame_size(width: int, height: int, frames: int, bounds: Bounds) -> tuple[int, int]:
    """Return the (width, height) of a clip's frames if the least pixels are a frame's and the most the clip's.

    Two frames make one row of tokens, so a frame may take twice its share.
    """
    check_ratio(width, height, "clip")
    area = bounds.factor**2
    share = min(_FRAME_TOKENS * area, 2 * bounds.max_pixels // frames)
    most = max(share, math.floor(_FRAME_SLACK * bounds.min_pixels), area)
    return _resized(width, height, width * height, Bounds(bounds.factor, bounds.min_pixels, most))


def whole_clip_size(width: int, height: int, frames: int, padded: int, bounds: Bounds) -> tuple[int, int]:
    """Return the (width, height) of a clip's frames if both bounds are of the whole clip.

    padded: number of frames after the last one is repeated.
    """
    check_ratio(width, height, "clip")
    return _resized(width, height, frames * width * height, bounds, padded)


def _resized(width: int, height: int, pixels: int, bounds: Bounds, frames: int = 1) -> tuple[int, int]:
    """Round both sides to multiples of the factor, halves to even ones; scale if frames x area is out of bounds."""
    factor = bounds.factor
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if frames * wide * high > bounds.max_pixels:
        scale = math.sqrt(pixels / bounds.max_pixels)
        wide, high = (max(factor, math.floor(side / scale / factor) * factor) for side in (width, height))
    elif frames * wide * high < bounds.min_pixels:
        scale = math.sqrt(bounds.min_pixels / pixels)
        wide, high = (math.ceil(side * scale / factor) * factor for side in (width, height))
    return wide, high
