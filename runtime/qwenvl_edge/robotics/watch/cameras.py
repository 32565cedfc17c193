"""Cameras by name: V4L2 devices, RTSP and other streams, video files, FFmpeg's filters by PyAV; GStreamer by OpenCV."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import FrameError, QwenVLError
from qwenvl_edge.inputs.pictures import ChannelOrder
from qwenvl_edge.inputs.video_files import is_turned, upright
from qwenvl_edge.machine.urls import show, url_of

_GSTREAMER, _FILTER = "gst:", "lavfi:"
_OPEN_S, _READ_S = 10.0, 10.0  # then a stream counts as lost
_NV12 = ("nv12",)
# Not fflags=nobuffer: it drops what was read to recognise the stream, and with it the key frame that all else needs.
_LIVE = {"flags": "low_delay"}
_RTSP = {"rtsp_transport": "tcp"}  # lost UDP packets smear pictures


@dataclass(frozen=True)
class CameraFrame:
    """A frame as the decoder gives it: uint8 [H, W, 3], or NV12 [3H/2, W]."""

    pixels: Any = field(repr=False)
    channel_order: ChannelOrder


@dataclass(frozen=True)
class Camera:
    """Something that gives frames.

    name: /dev/video0 (or 0), a URL such as rtsp://host/stream, a video file, `lavfi:` and a filter graph of FFmpeg, or
    `gst:` and a GStreamer pipeline that ends in appsink. options: FFmpeg's, such as video_size or rtsp_transport.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """One of gstreamer, filter, v4l2, stream and file."""
        if self.name.startswith(_GSTREAMER):
            return "gstreamer"
        if self.name.startswith(_FILTER):
            return "filter"
        if self.name.isdecimal() or self.name.startswith("/dev/"):
            return "v4l2"
        return "stream" if url_of(self.name) is not None else "file"

    @property
    def ends(self) -> bool:
        """True for a file, whose end is not a failure."""
        return self.kind == "file"

    def check(self) -> None:
        """Check what can be checked before frames are needed.

        Raises:
            FrameError: a file is missing.
            QwenVLError: the package that reads the camera is not installed, or has no GStreamer.
        """
        if self.kind == "file" and not Path(self.name).is_file():
            raise FrameError(
                f"there is no video file at {show(self.name)}; give a file, /dev/video0, rtsp://HOST/PATH or gst:PIPE."
            )
        if self.kind == "gstreamer":
            _opencv()
        else:
            _pyav()

    def frames(self) -> Generator[CameraFrame, None, None]:
        """Yield frames as they come: those of a file or a filter at their own pace, others as they arrive.

        Raises:
            FrameError: the camera cannot be opened, or is lost.
        """
        return self._by_opencv() if self.kind == "gstreamer" else self._by_pyav()

    def _by_pyav(self) -> Generator[CameraFrame, None, None]:
        av = _pyav()
        try:
            with av.open(*self._opened(), options=self._all_options(), timeout=(_OPEN_S, _READ_S)) as container:
                if not container.streams.video:
                    raise FrameError(f"the camera {show(self.name)} has no pictures; give another one.")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO" if self.ends else "SLICE"  # threads by frame hold frames back
                pace = _Pace() if self.kind in ("file", "filter") else None
                for frame in container.decode(stream):
                    if pace is not None:
                        pace.wait(frame.time)
                    yield _frame(frame)
        except (av.FFmpegError, ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FrameError(f"the camera {show(self.name)} cannot be read: {reason}; look after it.") from None

    def _opened(self) -> tuple[Any, ...]:
        """PyAV's first arguments: the name, the mode and the format."""
        if self.kind == "v4l2":
            path = f"/dev/video{self.name}" if self.name.isdecimal() else self.name
            return path, "r", "video4linux2"
        if self.kind == "filter":
            return self.name.removeprefix(_FILTER), "r", "lavfi"
        return self.name, "r"

    def _all_options(self) -> dict[str, str]:
        options = {} if self.ends else dict(_LIVE)
        if self.name.startswith("rtsp"):
            options |= _RTSP
        return {**options, **self.options}

    def _by_opencv(self) -> Generator[CameraFrame, None, None]:
        cv2 = _opencv()
        capture = cv2.VideoCapture(self.name.removeprefix(_GSTREAMER), cv2.CAP_GSTREAMER)
        try:
            if not capture.isOpened():
                raise FrameError(
                    f"the pipeline {show(self.name)} cannot be opened; try it with gst-launch-1.0, and end it in "
                    "`appsink drop=true max-buffers=1`."
                )
            while True:
                fine, pixels = capture.read()
                if not fine:
                    raise FrameError(f"the pipeline {show(self.name)} gives no more frames; look after the camera.")
                yield CameraFrame(pixels, "nv12" if pixels.ndim == 2 else "bgr")
        finally:
            capture.release()


class _Pace:
    """Holds frames back until their time has come."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def wait(self, at_s: float | None) -> None:
        """Sleep until a frame of that time is due; one that is late comes at once."""
        if at_s is None:
            return
        now = time.monotonic()
        self._begun = now - at_s if self._begun is None else self._begun
        time.sleep(max(self._begun + at_s - now, 0.0))


def _frame(frame: Any) -> CameraFrame:
    """NV12 as it is; all else becomes RGB, upright."""
    if frame.format.name in _NV12 and not (frame.width % 2 or frame.height % 2 or is_turned(frame)):
        return CameraFrame(frame.to_ndarray(), "nv12")
    return CameraFrame(upright(frame.to_ndarray(format="rgb24"), frame), "rgb")


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise QwenVLError("cameras need av, which is not installed; run: pip install 'qwenvl-edge[camera]'") from None
    return av


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise QwenVLError(
            "gst: needs OpenCV with GStreamer, as JetPack and Debian bring it; run: sudo apt install python3-opencv"
        ) from None
    with contextlib.suppress(AttributeError):
        if cv2.CAP_GSTREAMER in cv2.videoio_registry.getBackends():
            return cv2
    raise QwenVLError(
        "this OpenCV is built without GStreamer, as those of PyPI are; use JetPack's or Debian's: "
        "sudo apt install python3-opencv"
    )
