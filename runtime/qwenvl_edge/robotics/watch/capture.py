"""A thread that reads a camera for as long as it runs, and opens it again when it was lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from qwenvl_edge.errors import FrameError, QwenVLError
from qwenvl_edge.robotics.watch.cameras import Camera, CameraFrame

_RETRY_S, _LONGEST_RETRY_S = 0.5, 10.0


class Capture:
    """Reads a camera in a thread of its own.

    Args:
        camera: what to read.
        put: takes each frame, in that thread; an error that it raises is told and the frame passed over.
        tell: takes ("lost", why) and ("back", "") when the camera is lost and when it gives frames again.
        retry_s: the first pause before it is opened again; each failure doubles it, up to ten seconds.
    """

    def __init__(
        self,
        camera: Camera,
        put: Callable[[CameraFrame], None],
        tell: Callable[[str, str], None],
        *,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._camera = camera
        self._put = put
        self._tell = tell
        self._retry_s = retry_s
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def finished(self) -> bool:
        """True when no more frames come: a file has ended, or `stop` was called."""
        return not self._thread.is_alive()

    def stop(self, wait_s: float = 12.0) -> None:
        """End the thread; a stream that hangs is left after wait_s, and its thread ends with the process."""
        self._stop.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        pause_s = self._retry_s
        while not self._stop.is_set():
            try:
                if self._read():
                    return
                reason = f"the camera {self._camera.name} gives no more frames."
            except FrameError as error:
                reason = str(error)
            except Exception as error:  # a driver or a decoder may raise anything
                reason = f"the camera {self._camera.name} failed: {type(error).__name__}: {error}."
            if self._stop.is_set():
                return
            if not self._lost:
                self._lost, pause_s = True, self._retry_s
                self._tell("lost", reason)
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)

    def _read(self) -> bool:
        """Read until the camera ends or `stop`; return whether that is its proper end."""
        with contextlib.closing(self._camera.frames()) as frames:
            for frame in frames:
                if self._stop.is_set():
                    return True
                if self._lost:
                    self._lost = False
                    self._tell("back", "")
                try:
                    self._put(frame)
                except QwenVLError as error:
                    if self._stop.is_set():
                        return True
                    self._tell("unusable", str(error))
        return self._camera.ends
