"""Clips of a request: a video file, or a list of frames, decoded and kept in the size in which the model sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.inputs.clips import Clip, Video, load_clip
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.inputs.video_files import DecodingLimits
from qwenvl_edge.server.places import Places, unusable
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.sources import PictureSource, Size
from qwenvl_edge.server.workers import Workers

_FRAMES = "data:video/jpeg;base64,"  # vLLM's form of a list of frames, a comma between them
_FRAME = "data:image/jpeg;base64,"
_CONTAINERS = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi")
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
_PACE = 2.0  # frames per second, where a request does not say
_ANY_PACE = 1e4  # faster than any file


@dataclass(frozen=True)
class Wanted:
    """The frames that a request wants of a clip, and their pixels.

    fps: of a list of frames, their pace. frames: the most. every: take all frames of a file, as far as the server's
    limits let it, evenly spread beyond them.
    """

    fps: float | None = None
    frames: int | None = None
    pixels: PixelLimits = NO_LIMITS
    every: bool = False


class ClipSource:
    """Loads clips within a server's limits."""

    def __init__(
        self, limits: ServerLimits, places: Places, pictures: PictureSource, workers: Workers, family: Family
    ) -> None:
        self._limits = limits
        self._places = places
        self._pictures = pictures
        self._workers = workers
        self._family = family
        self._decoding = DecodingLimits(
            bytes=limits.memory_bytes // 4,
            frame_pixels=limits.picture_pixels,
            pixels=limits.clip_pixels,
            containers=_CONTAINERS,
            codecs=_CODECS,
        )

    async def load(
        self, place: str | Sequence[str], attachments: Mapping[str, bytes], name: str, wanted: Wanted
    ) -> Clip:
        """Return the clip at a place, or of the frames at several.

        Raises:
            ApiError: a place is not allowed or leads nowhere, or the clip is too large or of another format.
            ImageError: it is damaged, or its frames differ in size.
        """
        if isinstance(place, str) and place[: len(_FRAMES)].lower() == _FRAMES:
            place = [_FRAME + frame for frame in place[len(_FRAMES) :].split(",", self._limits.frames)]
        if not isinstance(place, str):
            return await self._listed(place, attachments, name, wanted)
        if wanted.every and (wanted.fps or wanted.frames):
            raise unusable(
                f"{name} is to have every frame (do_sample_frames is false, or num_frames -1) and to be sampled (fps, "
                "num_frames or max_frames); send one of them"
            )
        data = await self._places.read(place, attachments, name)
        return await self._workers.decode("clips", self._limits.clip_pixels, lambda: self._decode(data, name, wanted))

    async def _listed(self, places: Sequence[str], attachments: Mapping[str, bytes], name: str, wanted: Wanted) -> Clip:
        """Return a clip of frames that were sent apart."""
        most = min(self._limits.frames, wanted.frames or self._limits.frames)
        if len(places) > most:
            raise unusable(f"{name} has more than {most} frames; send every n-th of them")
        times = _times(len(places), wanted.fps)
        frames: list[Picture] = []
        left = self._limits.clip_pixels
        for number, place in enumerate(places):
            frame_name = f"frame {number} of {name}"
            data = await self._places.read(place, attachments, frame_name)
            frame = await self._pictures.decode(data, frame_name, lambda size: self._seen(size, times, wanted.pixels))
            left -= frame.size[0] * frame.size[1]
            if left < 0:
                raise unusable(f"{name} has more than {self._limits.clip_pixels:,} pixels in all its frames; shrink it")
            frames.append(frame)
        return _clip(frames, times, name, wanted.pixels)

    def _decode(self, data: bytes, name: str, wanted: Wanted) -> Clip:
        frames, times = self._pictures.processes.decode_clip(
            data,
            name,
            lambda size, times: self._seen(size, times, wanted.pixels),
            fps=_ANY_PACE if wanted.every else wanted.fps or _PACE,
            max_frames=min(self._limits.frames, wanted.frames or self._limits.frames),
            limits=self._decoding,
        )
        return _clip(frames, times, name, wanted.pixels)

    def _seen(self, size: Size, times: Sequence[float], limits: PixelLimits) -> Size:
        return self._family.seen_size(self._family.clip_layout(size, times, limits))


def _times(count: int, fps: float | None) -> list[float]:
    return [number / (fps or _PACE) for number in range(count)]


def _clip(frames: Sequence[Picture], times: Sequence[float], name: str, limits: PixelLimits) -> Clip:
    return load_clip(Video(frames, times=times), lambda frame, _: frame, name, limits)
