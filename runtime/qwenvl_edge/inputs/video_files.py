"""Video files, decoded by PyAV (the extra "video"): some of their frames, evenly spread, as a Video."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.clips import MOST_FRAMES, Video
from qwenvl_edge.inputs.options import check, number, whole

_LEAST_FRAMES = 4  # of a longer clip, as in the models' training
_MOST_BYTES = 1 << 30  # of decoded frames

Progress = Callable[[float], None]


def open_video(
    path: str | os.PathLike[str],
    *,
    fps: float = 2.0,
    max_frames: int = MOST_FRAMES,
    progress: Progress | None = None,
) -> Video:
    """Decode a video file on the disk into a Video of `fps` frames per second.

    At least 4 frames are taken, if there are so many, at most `max_frames`, and no more than fit into 1 GiB: then they
    are further apart, and still cover the whole file.

    Args:
        path: a local file of a kind that FFmpeg knows.
        fps: frames taken per second.
        max_frames: the most frames.
        progress: called with the part that is done, 0.0 to 1.0, after each frame that was taken.

    Raises:
        ImageError: the file cannot be opened or decoded, or holds no moving pictures.
        QwenVLError: PyAV is not installed, or an argument is out of range.
    """
    fps = check("fps", fps, number("a positive number", above=0))
    most = check("max_frames", max_frames, whole(least=1, most=MOST_FRAMES))
    av = _pyav()
    name = os.fspath(path)
    try:
        # FFmpeg gets the bytes of one file, and may open nothing that these name.
        with Path(name).open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
            frames, times = _decoded(container, name, fps, most, progress)
    except OSError as error:
        raise ImageError(f"cannot open the video {name!r}: {error.strerror or error}.") from None
    except (av.FFmpegError, ValueError) as error:
        raise ImageError(f"{name} cannot be decoded as a video: {error}.") from None
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
    container: Any, name: str, fps: float, most: int, progress: Progress | None
) -> tuple[list[Any], list[float]]:
    if not container.streams.video:
        raise ImageError(f"{name} holds no moving pictures.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    total = stream.frames or round(float((stream.duration or 0) * (stream.time_base or 0)) * rate)
    total = max(total or round((container.duration or 0) / 1e6 * rate), 1)
    frame_bytes = max(3 * stream.codec_context.width * stream.codec_context.height, 1)
    most = max(min(most, _MOST_BYTES // frame_bytes), 1)
    wanted = iter(chosen_frames(total, total / rate, fps, most))
    frames: list[Any] = []
    times: list[float] = []
    following = next(wanted, None)
    for index, frame in enumerate(container.decode(stream)):
        if following is None:
            break
        if index < following:
            continue
        time = frame.time if frame.time is not None else index / rate
        if not times or time > times[-1]:
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(float(time))
        following = next(wanted, None)
        if progress is not None:
            progress(min((index + 1) / total, 1.0))
    return frames, times


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"video files need {error.name}, which is not installed; run: pip install 'qwenvl-edge[video]'"
        ) from error
    return av
