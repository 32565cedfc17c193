"""Clips: frames and their times, from memory, a camera or a file, as a model with clips takes them."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import NO_LIMITS, PictureLayout, PixelLimits
from qwenvl_edge.inputs.options import anything, check, list_of
from qwenvl_edge.inputs.options import number as number_kind
from qwenvl_edge.inputs.pictures import Picture

MOST_FRAMES = 768
"""The most frames of a clip, those of the models' training."""


@dataclass(frozen=True, eq=False)
class Video:
    """A clip for `engine.chat(..., video=...)`: frames in the order of time, each used; thin them out beforehand.

    Args:
        frames: pictures of one size, as load_picture takes them, or an array [T, H, W, 3].
        fps: frames per second, for frames at an even pace; 2 if neither it nor times is given.
        times: seconds of each frame, rising.

    Raises:
        ImageError: there are no frames or too many, fps is not positive, or the times run back.
    """

    frames: Sequence[Any] = field(repr=False)
    fps: float | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        frames = check(
            "frames of the clip", self.frames, list_of("a frame", anything(), "a list of frames"), ImageError
        )
        object.__setattr__(self, "frames", list(frames))
        count = len(self.frames)
        if not count:
            raise ImageError("the clip has no frames; give at least one.")
        if count > MOST_FRAMES:
            raise ImageError(f"the clip has {count:,} frames, more than {MOST_FRAMES}; take every n-th of them.")
        if self.times is None:
            positive = number_kind("a positive number of frames per second", above=0)
            fps = 2.0 if self.fps is None else check("fps of the clip", self.fps, positive, ImageError)
            object.__setattr__(self, "times", [number / fps for number in range(count)])
            return
        if self.fps is not None:
            raise ImageError("the clip has both fps and times; give one of them.")
        seconds = list_of("an entry of times", number_kind("a number of seconds"), "a list of times")
        object.__setattr__(self, "times", [float(time) for time in check("times", self.times, seconds, ImageError)])
        self._check_times()

    def _check_times(self) -> None:
        times = self.seconds
        if len(times) != len(self.frames):
            raise ImageError(f"the clip has {len(self.frames)} frames but {len(times)} times; make them match.")
        for number, (time, later) in enumerate(itertools.pairwise(times)):
            if later <= time:
                raise ImageError(
                    f"the times of the clip run back: frame {number + 1} comes {later:g} s, frame {number} {time:g} s; "
                    "put the frames in order."
                )

    @property
    def seconds(self) -> Sequence[float]:
        """The times of the frames in seconds."""
        return self.times or ()


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded Video: pictures of one size, their times in seconds, and the limits of its pixels."""

    frames: tuple[Picture, ...] = field(repr=False)
    times: tuple[float, ...]
    name: str
    limits: PixelLimits = NO_LIMITS

    def __getstate__(self) -> dict[str, Any]:
        """See Picture.__getstate__."""
        return vars(self).copy()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the frames, which identifies what is seen; the times are no part of it."""
        return hashlib.sha256("".join(frame.digest for frame in self.frames).encode()).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return self.frames[0].size

    def layout(self, family: Family) -> PictureLayout:
        """See Picture.layout."""
        return family.clip_layout(self.size, self.times, self.limits)

    def vision_inputs(self, family: Family) -> dict[str, npt.NDArray[Any]]:
        """See Picture.vision_inputs."""
        return family.vision_inputs([frame.pixels for frame in self.frames], self.layout(family))

    def to_pil(self) -> Image.Image:
        """Return a copy of the first frame as an RGB Pillow image."""
        return self.frames[0].to_pil()


Visual: TypeAlias = "Picture | Clip"


def load_clip(video: Any, load: Callable[[Any, str], Picture], name: str, limits: PixelLimits = NO_LIMITS) -> Clip:
    """Load the frames of a Video.

    Raises:
        ImageError: it is no Video, a frame cannot be read, or the frames differ in size.
    """
    if isinstance(video, Clip):
        return video
    if not isinstance(video, Video):
        raise ImageError(f"{name} is of type {type(video).__name__}; give a Video of frames.")
    frames = tuple(load(frame, f"frame {number} of {name}") for number, frame in enumerate(video.frames))
    for number, frame in enumerate(frames):
        if frame.size != frames[0].size:
            raise ImageError(
                f"frame {number} of {name} has {frame.size[0]}x{frame.size[1]} pixels, the first one "
                f"{frames[0].size[0]}x{frames[0].size[1]}; give frames of one size."
            )
    return Clip(frames, tuple(video.seconds), name, limits)


Videos: TypeAlias = "Video | Clip | Iterable[Video | Clip] | None"
"""The clips of a call: one, several or none."""


def video_list(videos: Video | Clip | Iterable[Video | Clip]) -> list[Any]:
    """Return the clips of a call as a list; one may stand alone."""
    if isinstance(videos, (Video, Clip)):
        return [videos]
    if isinstance(videos, (str, bytes)) or not isinstance(videos, Iterable):
        raise ImageError(f"video is of type {type(videos).__name__}; give a Video of frames, or a list of such.")
    return list(videos)
