"""A watch over scripted answers, what it tells, and videos for it."""

import json

import numpy as np

from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings
from support.scripted import engine


class Lines:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.lines = []

    def send(self, line):
        self.lines.append(json.loads(line))

    def close(self):
        pass

    def texts(self):
        return [line["text"] for line in self.lines if "text" in line]

    def events(self):
        return [line["event"] for line in self.lines if "event" in line]


def watch(folder, camera, answers, *, logged=None, **settings):
    """Watch until all answers are given; returns the sink and the counts."""
    lines, said = Lines(), [] if logged is None else logged
    chosen = {"every_s": 0.0, "count": len(answers), **settings}
    qwen, _ = engine(folder, *answers)
    watched = Watch(qwen, camera, WatchSettings("What?", **chosen), [lines], Messages(said.append))
    return lines, watched.run()


def write_video(path, frames, *, codec="libx264", rate=10, pixel_format="yuv420p"):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def shade(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)
