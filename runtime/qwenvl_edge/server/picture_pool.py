"""Large pictures and clips, decoded in processes: what takes long holds up no answer, damage ends a process at most."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.pictures import Picture, freeze
from qwenvl_edge.inputs.shrink import ShrunkPicture
from qwenvl_edge.inputs.video_files import DecodingLimits
from qwenvl_edge.server import picture_process
from qwenvl_edge.server.errors import SERVER, ApiError

_MEGABYTES = 1024
_COMPUTING_S = 10.0
_COMPUTING_CLIP_S = 60.0
_IDLE_S = 20.0  # after which a process ends; a new one is there in some tenths of a second
_END_S = 2.0

Size = tuple[int, int]


class PicturePool:
    """Decodes files in as many processes as threads call it."""

    def __init__(self, *, megabytes: int = _MEGABYTES, seconds: float = _COMPUTING_S, idle_s: float = _IDLE_S) -> None:
        self._command = [sys.executable, "-m", picture_process.__name__, str(megabytes), str(seconds)]
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._idle: list[tuple[float, subprocess.Popen[bytes]]] = []
        self._timer: threading.Timer | None = None
        self._closed = False

    def decode(self, data: bytes, name: str, seen: dict[Size, Size]) -> Picture:
        """Return the picture in a file's bytes, in the size in which the model sees it.

        seen: that size, by the size (width, height) that the upright picture may have.

        Raises:
            ImageError: it is damaged, or beyond the limits.
            ApiError: no process can be started.
        """
        question = {"bytes": len(data), "name": name, "seen": _written(seen)}
        (picture,) = self._decode(question, data, lambda _: {})
        return picture

    def decode_clip(
        self,
        data: bytes,
        name: str,
        seen: Callable[[Size, Sequence[float]], Size],
        *,
        fps: float,
        max_frames: int,
        limits: DecodingLimits,
    ) -> tuple[list[Picture], list[float]]:
        """Return the frames in a video file's bytes, in the size in which the model sees them, and their seconds.

        seen: gives that size from that of a frame and the seconds of all. fps, max_frames, limits: those of read_video.

        Raises:
            ImageError: it is damaged, or beyond the limits.
            QwenVLError: PyAV is not installed.
            ApiError: no process can be started.
        """
        times: list[float] = []

        def sized(found: dict[str, Any]) -> dict[str, Any]:
            times.extend(found["times"])
            return {
                "seen": _written({(width, height): seen((width, height), times) for width, height in found["sizes"]})
            }

        options = {"fps": fps, "max_frames": max_frames, "limits": dataclasses.asdict(limits)}
        question = {"bytes": len(data), "name": name, "clip": options, "seconds": _COMPUTING_CLIP_S}
        return self._decode(question, data, sized), times

    def close(self) -> None:
        """End the processes; those at work end after it."""
        self._closed = True
        self._end_idle(0.0)

    def _decode(
        self, question: dict[str, Any], data: bytes, sized: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> list[Picture]:
        """Return the frames of a file; sized: answers what a process asks about their size."""
        name = question["name"]
        process = self._take()
        try:
            answer, pixels = _ask(process, question, data, sized)
        except (OSError, ValueError):  # it has ended
            _end(process)
            reason = "cannot be decoded within the server's limits of memory and time"
            raise ImageError(f"{name} {reason}; send it smaller, or in a plainer format.") from None
        except BaseException:
            _end(process)
            raise
        self._give_back(process)
        if "error" in answer:
            raise (ImageError if answer["kind"] == ImageError.__name__ else QwenVLError)(answer["error"])
        names = [name] if len(pixels) == 1 and "clip" not in question else _frame_names(name, len(pixels))
        return [
            _picture(each, frame, tuple(told["size"]))
            for each, frame, told in zip(names, pixels, answer["frames"], strict=True)
        ]

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._idle:
                return self._idle.pop()[1]
        try:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except OSError:
            raise ApiError(
                503,
                "the server cannot decode a large picture now; try again.",
                kind=SERVER,
                code="busy",
                headers={"Retry-After": "2"},
            ) from None

    def _give_back(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), process))
            if self._timer is None:
                self._timer = self._later()
        if self._closed:
            self._end_idle(0.0)

    def _later(self) -> threading.Timer:
        timer = threading.Timer(self._idle_s, self._end_idle, (self._idle_s,))
        timer.daemon = True
        timer.start()
        return timer

    def _end_idle(self, seconds: float) -> None:
        """End the processes that have idled for so long, and look again later if others are left."""
        before = time.monotonic() - seconds
        with self._lock:
            late = [process for since, process in self._idle if since <= before]
            self._idle = [each for each in self._idle if each[0] > before]
            self._timer = self._later() if self._idle and not self._closed else None
        for process in late:
            _end(process)


def _written(seen: Mapping[Size, Size]) -> dict[str, Size]:
    return {f"{width}x{height}": size for (width, height), size in seen.items()}


def _frame_names(name: str, count: int) -> list[str]:
    return [f"frame {number} of {name}" for number in range(count)]


def _picture(name: str, pixels: npt.NDArray[np.uint8], original: Size) -> Picture:
    picture = freeze(pixels, name)
    return picture if picture.size == original else ShrunkPicture(picture.pixels, name, original)


def _ask(
    process: subprocess.Popen[bytes],
    question: dict[str, Any],
    data: bytes,
    sized: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Send a file; return the answer and its pixels. Raises OSError or ValueError where the process ends instead."""
    assert process.stdout is not None
    _send(process, question, data)
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    if "sizes" in answer:
        _send(process, sized(answer))
        answer = json.loads(process.stdout.readline())
    frames = [np.empty(frame["shape"], np.uint8) for frame in answer.get("frames", ())]
    for frame in frames:
        rest = memoryview(frame.data).cast("B")
        while rest:
            count = process.stdout.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise ValueError("the process has ended")
            rest = rest[count:]
    return answer, frames


def _send(process: subprocess.Popen[bytes], line: dict[str, Any], data: bytes = b"") -> None:
    assert process.stdin is not None
    for part in (json.dumps(line).encode() + b"\n", data):
        rest = memoryview(part)
        while rest:
            rest = rest[process.stdin.write(rest) :]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, which its closed stdin tells it, or else a signal."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
