"""Sizes and normalisation of pictures and clips: preprocessor_config.json, or what transformers 5 writes in its place.

`size` names its limits shortest_edge and longest_edge, but they are numbers of pixels. The class that a file names is
ignored: some published ones no longer exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.families.dynamic_vl.config import VisionConfig

_IMAGES, _VIDEOS, _BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
FILES = (_IMAGES, _VIDEOS, _BOTH)
_TOKENS = 1280
_CLIP_TOKENS = 24_576
_CLIP_LIMITS = (4096, 25_165_824)
_BICUBIC = 3
_STEPS = ("do_resize", "do_rescale", "do_normalize")
_LIMITS = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
Limits = tuple[int, int]


@dataclass(frozen=True)
class Processor:
    """Limits in pixels, and mean and deviation of the channels.

    min_pixels, max_pixels: of a picture; the default ceiling is 1,280 tokens, because the published one is more than a
    board has memory for, and places get worse far above it. video_max_pixels: of a whole clip (frames x height x
    width). video_min_pixels: of a whole clip in Qwen3-VL, of one frame in the others.
    """

    min_pixels: int
    max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def limited(self, min_pixels: int | None, max_pixels: int | None) -> Processor:
        """The same with other limits of a picture; None keeps one.

        Raises:
            QwenVLError: they leave no size.
        """
        least = self.min_pixels if min_pixels is None else min_pixels
        most = self.max_pixels if max_pixels is None else max_pixels
        if not 0 < least <= most:
            raise QwenVLError(f"pictures of {least:,} to {most:,} pixels: no size is left; choose other limits.")
        return dataclasses.replace(self, min_pixels=least, max_pixels=most)


def read_processor(folder: Path, vision: VisionConfig, *, whole_clips: bool) -> Processor:
    """Read the settings of the checkpoint in `folder`; whole_clips: the files' limits of clips are those of Qwen3-VL.

    Raises:
        CheckpointError: there are none, or they contradict themselves or config.json.
    """
    token = vision.factor**2
    where, images = _section(folder, _IMAGES, "image_processor")
    if not images:
        raise CheckpointError(f'the checkpoint "{folder}" lacks {_IMAGES}; copy it from the published one.')
    least, most = _read(where, images, vision)
    where_clips, clips = _section(folder, _VIDEOS, "video_processor")
    if whole_clips:
        clip_least, clip_most = _read(where_clips, clips, vision, _CLIP_LIMITS)
    else:
        clip_least, clip_most = _read(where_clips, clips, vision, (least, _CLIP_TOKENS * token))
    return Processor(
        min_pixels=least,
        max_pixels=max(least, token, min(most, _TOKENS * token)),
        video_min_pixels=clip_least,
        video_max_pixels=max(clip_least, token, min(clip_most, _CLIP_TOKENS * token)),
        mean=_channels(where, images, "image_mean"),
        std=_channels(where, images, "image_std"),
    )


def _section(folder: Path, name: str, key: str) -> tuple[str, Mapping[str, Any]]:
    """The settings of pictures or clips, and where they are: in a file of their own, or in that of transformers 5."""
    if (folder / name).is_file():
        return name, read_object(folder / name)
    if (folder / _BOTH).is_file():
        found = read_object(folder / _BOTH).get(key)
        if isinstance(found, Mapping):
            return f"{_BOTH}, {key}", found
    return name, {}


def _read(where: str, raw: Mapping[str, Any], vision: VisionConfig, default: Limits | None = None) -> Limits:
    """Check a section and return its limits; without them `default`, or an error where that is None."""
    sizes = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, wanted in sizes.items():
        if raw.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{where} has {name} {raw[name]}, but config.json says {wanted}; copy both from one checkpoint."
            )
    for step in _STEPS:
        if raw.get(step, True) is False:
            raise CheckpointError(f"{where} switches {step} off, which is not supported; set it to true.")
    if raw.get("resample", _BICUBIC) != _BICUBIC:
        raise CheckpointError(f"{where} asks for another resampling than bicubic (3), which is not supported.")
    if abs(raw.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{where} asks for a rescale_factor other than 1/255, which is not supported.")
    found = [_limit(where, raw, *names) for names in _LIMITS]
    least, most = (value if value is not None else (default or (None, None))[i] for i, value in enumerate(found))
    if least is None or most is None:
        raise CheckpointError(f"{where} has no limits of a picture (size, or min_pixels and max_pixels); add them.")
    if not 0 < least <= most:
        raise CheckpointError(f"{where} allows {least:,} to {most:,} pixels, which no picture has; correct its sizes.")
    return least, most


def _limit(where: str, raw: Mapping[str, Any], edge: str, pixels: str) -> int | None:
    """One limit, from `size` before min_pixels or max_pixels.

    Raises:
        CheckpointError: the two contradict each other, or one is no whole number.
    """
    size = raw.get("size")
    if size is not None and not isinstance(size, Mapping):
        raise CheckpointError(f"{where}: size is not an object with shortest_edge and longest_edge.")
    given = [
        value for value in ((size or {}).get(edge), (size or {}).get(pixels), raw.get(pixels)) if value is not None
    ]
    if any(type(value) is not int for value in given):
        raise CheckpointError(f"{where}: {pixels} is not a whole number of pixels.")
    if len(set(given)) > 1:
        raise CheckpointError(
            f"{where} contradicts itself: size.{edge} is {given[0]:,}, but {pixels} is {given[-1]:,}; keep one of them."
        )
    return given[0] if given else None


def _channels(where: str, raw: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = raw.get(name)
    if not isinstance(values, list) or len(values) != 3 or not all(type(v) in (int, float) for v in values):
        raise CheckpointError(f"{where}: {name} is not a list of three numbers.")
    return float(values[0]), float(values[1]), float(values[2])
