"""A camera that follows a script, and a port that nobody listens on."""

import socket
import time

import numpy as np

from qwenvl_edge.errors import FrameError
from qwenvl_edge.robotics.watch.cameras import Camera, CameraFrame


class Moments(Camera):
    """A camera that does what each entry of `script` says: frames of a shade, or an exception."""

    script = ()
    pause_s = 0.0

    @property
    def kind(self):
        return "stream"

    def frames(self):
        while self.script:
            each = self.script.pop(0)
            if isinstance(each, Exception):
                raise each
            time.sleep(self.pause_s)
            yield CameraFrame(np.full((4, 6, 3), each, np.uint8), "rgb")
        time.sleep(0.01)
        raise FrameError("the camera is empty.")


def moments(*script, pause_s=0.0):
    camera = Moments("moments")
    object.__setattr__(camera, "script", list(script))
    object.__setattr__(camera, "pause_s", pause_s)
    return camera


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
