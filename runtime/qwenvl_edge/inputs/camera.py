"""Camera frames on their way to the engine: a slot for one frame, in which the newest wins, and the last seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwenvl_edge.errors import FrameError
from qwenvl_edge.inputs.clips import MOST_FRAMES, Video
from qwenvl_edge.inputs.options import check, number, optional
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, array_to_rgb, check_channel_order, freeze
from qwenvl_edge.machine.forks import NotPicklable

_SLACK = 0.9  # of the time between two frames, since cameras are not exactly on time
_POSITIVE = optional(number("a positive number", above=0))
_LIMIT = optional(number("0 or more", least=0))


@dataclass(frozen=True)
class Frame:
    """A camera frame: its `picture` (give it to the engine), when it was captured (seconds of time.monotonic), its
    `number`, which counts every frame put, from 0, and the `header` that it was put with."""

    picture: Picture = field(repr=False)
    captured: float
    number: int
    header: Any = field(default=None, repr=False)

    @property
    def age_ms(self) -> float:
        """Milliseconds since it was captured."""
        return (time.monotonic() - self.captured) * 1e3


class LoadPicture(Protocol):
    """A function that makes a picture of a frame, such as load_picture and `QwenVLEngine.load_picture`."""

    def __call__(self, source: Any, *, channel_order: ChannelOrder, name: str) -> Picture:
        """Return the picture, which no longer needs the frame's memory. Raises ImageError."""


class FrameSource(NotPicklable):
    """A slot of depth one between a camera, which puts frames at its own pace, and whoever takes the newest.

    The camera is never kept waiting, and an answer is never about a frame that a newer one has replaced. May be used
    from several threads. dropped: frames that nobody took, because a newer one came or because they were stale.

    Args:
        channel_order: that of the frames: "rgb", "bgr", or "nv12" for the arrays [3H/2, W] of Jetson cameras.
        load: copies a frame; `engine.load_picture` leaves those in the GPU's memory there, None copies every frame to
            the host.
        clip_s: seconds of frames that are kept for `clip`, beside the slot; 0 keeps none.
        clip_fps: how many frames of a second are kept for it, at most.

    Raises:
        FrameError: clip_s or clip_fps is out of range, or the frames to keep are more than a clip may have.
    """

    def __init__(
        self,
        *,
        channel_order: ChannelOrder = "rgb",
        load: LoadPicture | None = None,
        clip_s: float = 0.0,
        clip_fps: float = 2.0,
    ) -> None:
        check_channel_order(channel_order)
        self._clip_s = check("clip_s", clip_s, number("a number of seconds, 0 or more", least=0), FrameError)
        self._clip_fps = check("clip_fps", clip_fps, number("a positive number", above=0), FrameError)
        if clip_s * clip_fps > MOST_FRAMES:
            raise FrameError(
                f"{clip_s:g} s of {clip_fps:g} frames are more than the {MOST_FRAMES} frames of a clip; keep fewer."
            )
        self._kept: deque[tuple[float, Picture]] = deque()
        self._channel_order = channel_order
        self._load = load or _load_array
        self._changed = threading.Condition()
        self._slot: tuple[Picture, float, int, Any] | None = None
        self._closed = False
        self._count = 0
        self.dropped = 0

    @property
    def closed(self) -> bool:
        """True once `close` was called: no more frames come."""
        return self._closed

    def put(
        self,
        pixels: Any,
        *,
        captured: float | None = None,
        header: Any = None,
        channel_order: ChannelOrder | None = None,
    ) -> None:
        """Put a frame into the slot, in place of one that is still there.

        Args:
            pixels: uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or NV12 [3H/2, W], also of another library or
                in CUDA's memory (`__cuda_array_interface__` or DLPack); it is copied.
            captured: when it was captured, in seconds of time.monotonic; None means now.
            header: anything that is to come back with the frame, such as the camera's message header.
            channel_order: that of this frame; None takes the source's.

        Raises:
            ImageError: the array has another shape or dtype.
            FrameError: the source is closed, or `captured` lies in the future.
        """
        now = time.monotonic()
        captured = now if captured is None else check("captured", captured, number("a number of seconds"), FrameError)
        if captured > now:
            raise FrameError(f"the frame was captured {captured - now:,.3f} s from now; give time.monotonic().")
        order = self._channel_order if channel_order is None else channel_order
        check_channel_order(order)
        picture = self._load(pixels, channel_order=order, name=f"frame {self._count}")
        with self._changed:
            if self._closed:
                raise FrameError("the frame source is closed; make a new one.")
            self.dropped += self._slot is not None
            self._slot = picture, captured, self._count, header
            self._count += 1
            self._keep(captured, picture)
            self._changed.notify()

    def _keep(self, captured: float, picture: Picture) -> None:
        """Keep a frame for clips if it is due, and drop those that are too old."""
        kept = self._kept
        if self._clip_s and (not kept or captured - kept[-1][0] >= _SLACK / self._clip_fps):
            kept.append((captured, picture))
        while kept and kept[-1][0] - kept[0][0] > self._clip_s:
            kept.popleft()

    def clip(self, *, seconds: float | None = None, fps: float | None = None) -> Video:
        """Return the last seconds as a clip, which `engine.chat(..., video=...)` takes; the slot stays as it is.

        Args:
            seconds: how long it is at most; None takes all that is kept.
            fps: frames of a second at most; None takes all that are kept.

        Raises:
            FrameError: the source keeps no frames for clips, or none has come yet.
        """
        if not self._clip_s:
            raise FrameError("the frame source keeps no frames for clips; make it with FrameSource(clip_s=4).")
        limits = {"seconds": seconds, "fps": fps}
        seconds, fps = (check(name, limits[name], _POSITIVE, FrameError) for name in limits)
        with self._changed:
            kept = list(self._kept)
        if not kept:
            raise FrameError("no frame has come yet; look after the camera.")
        since = kept[-1][0] - (self._clip_s if seconds is None else seconds)
        taken: list[tuple[float, Picture]] = []
        for captured, picture in reversed(kept):  # the newest frame is always one of them
            due = fps is None or not taken or taken[-1][0] - captured >= _SLACK / fps
            if captured >= since and due:
                taken.append((captured, picture))
        taken.reverse()
        return Video([picture for _, picture in taken], times=[captured - taken[0][0] for captured, _ in taken])

    def take(self, *, max_age_ms: float | None = None, timeout_s: float | None = None) -> Frame:
        """Take the newest frame out of the slot; wait for one if there is none.

        Args:
            max_age_ms: refuse a frame that was captured longer ago.
            timeout_s: wait so long at most; None waits until a frame comes or the source is closed.

        Raises:
            FrameError: the frame is too old (it is dropped), none came in time, or the source is closed and empty.
        """
        limits = {"max_age_ms": max_age_ms, "timeout_s": timeout_s}
        max_age_ms, timeout_s = (check(name, limits[name], _LIMIT, FrameError) for name in limits)
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._closed, timeout_s)
            if self._slot is None:
                reason = "the frame source is closed" if self._closed else f"no frame came within {timeout_s:g} s"
                raise FrameError(f"{reason}; look after the camera.")
            picture, captured, number, header = self._slot
            self._slot = None
            age_ms = (time.monotonic() - captured) * 1e3
            if max_age_ms is not None and age_ms > max_age_ms:
                self.dropped += 1
                raise FrameError(
                    f"frame {number} is {age_ms:,.0f} ms old, older than the limit of {max_age_ms:g} ms; "
                    "take the next one, or look after the camera."
                )
        return Frame(picture, captured, number, header)

    def close(self) -> None:
        """End the source: a frame in the slot may still be taken, then `take` raises FrameError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _load_array(source: Any, *, channel_order: ChannelOrder, name: str) -> Picture:
    return freeze(array_to_rgb(source, channel_order, name), name)
