"""Frames, boxes and answers for Rerun (the extra "rerun"): an .rrd file, or a viewer that runs."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.replay.frames import RecordedFrame
from qwenvl_edge.robotics.replay.journal import Entry

VIEWER = "rerun+http"
_QUALITY = 85  # of the JPEG that a frame becomes


def check_target(target: str) -> None:
    """Check that rerun is installed and that `target` is an .rrd file or a viewer's address; raises QwenVLError."""
    if not target.endswith(".rrd") and not target.startswith(VIEWER):
        raise QwenVLError(
            f'--rerun is "{target}"; give a file that ends in .rrd, or a viewer: {VIEWER}://127.0.0.1:9876/proxy'
        )
    try:
        import rerun  # noqa: F401
    except ImportError:
        raise QwenVLError(
            "--rerun needs rerun-sdk, which is not installed; run: pip install 'qwenvl-edge[rerun]'"
        ) from None


class RerunLog:
    """Logs answers by the time of their frames. target: see check_target. name: the same name is the same recording."""

    def __init__(self, target: str, name: str) -> None:
        import rerun

        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream("qwenvl-edge", recording_id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
        if target.startswith(VIEWER):
            self._stream.connect_grpc(target)
        else:
            self._stream.save(target)

    def add(self, frame: RecordedFrame, entry: Entry) -> None:
        """Log a frame with its answer."""
        rr, stream = self._rerun, self._stream
        stream.set_time("recorded", timestamp=np.datetime64(frame.log_ns, "ns"))
        stream.log("camera", rr.Image(frame.picture.pixels).compress(jpeg_quality=_QUALITY))
        corners = np.array([(box.x1, box.y1, box.x2, box.y2) for box in entry.boxes], np.float32).reshape(-1, 4)
        labels = [box.label for box in entry.boxes]
        stream.log("camera/boxes", rr.Boxes2D(array=corners, array_format=rr.Box2DFormat.XYXY, labels=labels))
        points = np.array([(point.x, point.y) for point in entry.points], np.float32).reshape(-1, 2)
        stream.log("camera/points", rr.Points2D(points, labels=[point.label for point in entry.points]))
        stream.log("answer", rr.TextDocument(entry.text))

    def close(self) -> None:
        """Send or write what is still buffered."""
        self._stream.flush()
        self._stream.disconnect()
