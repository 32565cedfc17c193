"""Video files, decoded by PyAV (the extra "video"): some of their frames, evenly spread, as a Video."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.clips import MOST_FRAMES, Video
from qwenvl_edge.inputs.options import check, number, whole
from qwenvl_edge.inputs.pictures import MAX_PIXELS

_LEAST_FRAMES = 4  # of a longer clip, as in the models' training

Progress = Callable[[float], None]


@dataclass(frozen=True)
class DecodingLimits:
    """The most that a video may cost.

    bytes: of the frames that are taken; beyond it they are further apart. frame_pixels: of one frame. pixels: of all
    frames that are decoded, also between those taken. containers, codecs: those that are read, by FFmpeg's names; None
    takes all.
    """

    bytes: int = 1 << 30
    frame_pixels: int = MAX_PIXELS
    pixels: float = math.inf
    containers: tuple[str, ...] | None = None
    codecs: tuple[str, ...] | None = None


def open_video(
    path: str | os.PathLike[str],
    *,
    fps: float = 2.0,
    max_frames: int = MOST_FRAMES,
    progress: Progress | None = None,
) -> Video:
    """Decode a video file on the disk into a Video of `fps` frames per second.

    At least 4 frames are taken, if there are so many, at most `max_frames`, and no more than fit into 1 GiB: then they
    are further apart, and still cover the whole file. They are turned upright as the file says.

    Args:
        path: a local file of a kind that FFmpeg knows.
        fps: frames taken per second.
        max_frames: the most frames.
        progress: called with the part that is done, 0.0 to 1.0, after each frame that was taken.

    Raises:
        ImageError: the file cannot be opened or decoded, or holds no moving pictures.
        QwenVLError: PyAV is not installed, or an argument is out of range.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            return read_video(file, name, fps=fps, max_frames=max_frames, progress=progress)
    except OSError as error:
        raise ImageError(f"cannot open the video {name!r}: {error.strerror or error}.") from None


def read_video(
    file: io.BufferedIOBase,
    name: str,
    *,
    fps: float = 2.0,
    max_frames: int = MOST_FRAMES,
    progress: Progress | None = None,
    limits: DecodingLimits = DecodingLimits(),
) -> Video:
    """Decode an open video file as open_video does. name: for messages. Raises its errors."""
    fps = check("fps", fps, number("a positive number", above=0))
    most = check("max_frames", max_frames, whole(least=1, most=MOST_FRAMES))
    av = _pyav()
    # FFmpeg gets the bytes of one file, and may open nothing that these name.
    options = {"protocol_whitelist": "none"}
    if limits.containers is not None:
        options["format_whitelist"] = ",".join(limits.containers)
    try:
        with av.open(file, options=options) as container:
            frames, times = _decoded(container, name, fps, most, progress, limits)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be decoded as a video: {reason}.") from None
    if not frames:
        raise ImageError(f"{name} holds no moving pictures.")
    return Video(frames, times=times)


def chosen_frames(total: int, seconds: float, fps: float, most: int) -> list[int]:
    """Return the numbers of the frames to take of `total` in `seconds`: an even count, evenly spread.

    The count is that of the published preprocessing: seconds x fps, within 4 and `most`, rounded down to an even one.
    """
    wanted = min(max(math.floor(seconds * fps), _LEAST_FRAMES), most, total)
    count = max(wanted // 2 * 2, 1)
    return [round(place) for place in np.linspace(0, total - 1, count).tolist()]


def _decoded(
    container: Any, name: str, fps: float, most: int, progress: Progress | None, limits: DecodingLimits
) -> tuple[list[Any], list[float]]:
    if not container.streams.video:
        raise ImageError(f"{name} holds no moving pictures.")
    stream = container.streams.video[0]
    codec = stream.codec_context.codec.canonical_name
    if limits.codecs is not None and codec not in limits.codecs:
        raise ImageError(f"{name} holds {codec} video; give one of {', '.join(limits.codecs)}.")
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    total = stream.frames or round(float((stream.duration or 0) * (stream.time_base or 0)) * rate)
    total = max(total or round((container.duration or 0) / 1e6 * rate), 1)
    pixels = max(stream.codec_context.width * stream.codec_context.height, 1)
    _check_frame(pixels, name, limits)
    stream.codec_context.options = {"max_pixels": str(limits.frame_pixels)}
    most = max(min(most, limits.bytes // (3 * pixels)), 1)
    wanted = iter(chosen_frames(total, total / rate, fps, most))
    frames: list[Any] = []
    times: list[float] = []
    following = next(wanted, None)
    left = limits.pixels
    for index, frame in enumerate(container.decode(stream)):
        if following is None:
            break
        left -= frame.width * frame.height
        _check_frame(frame.width * frame.height, name, limits)
        if left < 0:
            raise ImageError(f"{name} has more than {limits.pixels:,.0f} pixels in all its frames; cut or shrink it.")
        if index < following:
            continue
        time = frame.time if frame.time is not None else index / rate
        if not times or time > times[-1]:
            frames.append(upright(frame.to_ndarray(format="rgb24"), frame))
            times.append(float(time))
        following = next(wanted, None)
        if progress is not None:
            progress(min((index + 1) / total, 1.0))
    return frames, times


def is_turned(frame: Any) -> bool:
    """Tell whether a decoded frame is to be shown turned or mirrored, as phones write what their sensors see."""
    return _orientation(frame) != (False, False, False)


def upright(pixels: npt.NDArray[np.uint8], frame: Any) -> npt.NDArray[np.uint8]:
    """Return the pixels [H, W, 3] of a decoded frame as it is to be shown."""
    transposed, rows, columns = _orientation(frame)
    turned = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Return whether a frame is to be transposed, then its rows and its columns reversed.

    FFmpeg's display matrix (libavutil/display.h) maps a place (x, y) to (a x + c y, b x + d y).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _check_frame(pixels: int, name: str, limits: DecodingLimits) -> None:
    if pixels > limits.frame_pixels:
        raise ImageError(f"{name} has frames of more than {limits.frame_pixels:,} pixels; scale it down.")


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"video files need {error.name}, which is not installed; run: pip install 'qwenvl-edge[video]'"
        ) from error
    return av
