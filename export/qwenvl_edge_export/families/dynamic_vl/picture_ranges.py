"""Sizes of a vision graph's free dimensions, for the engines that want to know them beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qwenvl_edge.families.dynamic_config import DynamicVLConfig

_FRAME_TOKENS = 768  # of a clip's frame, the published limit
_STEEPEST = 200  # a side as a multiple of the other
_USUAL = (480, 640)  # pixels of the picture that engines are tuned for

Range = tuple[int, int, int]


def vision_ranges(raw: Mapping[str, Any]) -> dict[str, Range]:
    """(least, tuned for, most) of P patches, Wn windows and WG places in windows, from a bundle's family.config.

    Windows do not follow from patches: a narrow picture has up to four times as many, so both have bounds.
    """
    config = DynamicVLConfig.read(raw)
    most = max(config.max_pixels, min(config.video_max_pixels, _FRAME_TOKENS * config.factor**2)) // config.factor**2
    rows, columns = (max(1, round(side / config.factor)) for side in _USUAL)
    if rows * columns > most:
        rows = columns = max(1, math.isqrt(most))
    per_token = config.merge_size**2
    ranges = {"P": (per_token, rows * columns * per_token, most * per_token)}
    if config.window_size:
        side = config.window_size // config.factor
        windows = (1, _windows(rows, columns, side), max(_windows(*grid, side) for grid in _largest_grids(most)))
        places = per_token * side**2
        ranges["Wn"] = windows
        ranges["WG"] = (windows[0] * places, windows[1] * places, windows[2] * places)
    return ranges


def _largest_grids(tokens: int) -> Iterator[tuple[int, int]]:
    """For every number of rows the most columns."""
    for rows in range(1, tokens + 1):
        columns = min(tokens // rows, _STEEPEST * rows)
        if columns * _STEEPEST >= rows:
            yield rows, columns


def _windows(rows: int, columns: int, side: int) -> int:
    return -(-rows // side) * -(-columns // side)
