"""The process in which a server decodes large pictures and clips; run as a module of its own.

Decoding one takes as long as a hundred tokens. In a thread it would hold the interpreter, which every token of every
answer needs, and at a low priority hold it the longer. Here it has its own, and limits of memory and computing time.

    python -m qwenvl_edge.server.picture_process MEGABYTES SECONDS

reads per file a line of JSON on stdin, and the N bytes of the file:

    {"bytes": N, "name": ..., "seen": {"WxH": [w, h], ...}}     a picture, and the size in which the model sees it
    {"bytes": N, "name": ..., "clip": {...}, "seconds": S}      a clip, options of read_video, and another limit

It answers with a line, {"frames": [{"shape": [h, w, 3], "size": [W, H]}, ...]} (of what follows, and of the original),
and the pixels of each; or {"error": a sentence, "kind": ImageError or QwenVLError}. For a clip it first tells {"sizes":
[[W, H], ...], "times": [...]} and reads a line {"seen": ...}. A file beyond the limits may end the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from typing import Any

import numpy as np

from qwenvl_edge.constraints.trial import limit_memory
from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.shrink import shrunk
from qwenvl_edge.inputs.video_files import DecodingLimits, read_video
from qwenvl_edge.machine.memory import give_back

_NICENESS = 5  # answers come first


def main(megabytes: int, seconds: float) -> None:
    """Decode the files that come on stdin until it ends."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to end
    limit_memory(megabytes << 20)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        data = sys.stdin.buffer.read(asked["bytes"])
        _limit_time(asked.get("seconds", seconds))
        try:
            frames = _clip(data, asked) if "clip" in asked else [_seen(load_picture(data, name=asked["name"]), asked)]
        except QwenVLError as error:
            _say({"error": str(error), "kind": type(error).__name__})
        except (MemoryError, KeyError):  # KeyError: it is not as large as its header says
            reason = f"{asked['name']} cannot be decoded; send it smaller, or in a plainer format."
            _say({"error": reason, "kind": ImageError.__name__})
        else:
            _say({"frames": [{"shape": frame.pixels.shape, "size": frame.size} for frame in frames]})
            for frame in frames:
                sys.stdout.buffer.write(np.ascontiguousarray(frame.pixels).data)
            del frames
        _limit_time(0)
        sys.stdout.buffer.flush()
        del data
        give_back()


def _clip(data: bytes, asked: dict[str, Any]) -> list[Picture]:
    name, options = asked["name"], asked["clip"]
    limits = DecodingLimits(**options.pop("limits"))
    video = read_video(io.BytesIO(data), name, **options, limits=limits)
    frames = [load_picture(frame, name=f"frame {number} of {name}") for number, frame in enumerate(video.frames)]
    _say({"sizes": sorted({frame.size for frame in frames}), "times": video.seconds})
    del video
    asked |= json.loads(sys.stdin.buffer.readline())
    return [_seen(frames.pop(0), asked) for _ in range(len(frames))]


def _seen(picture: Picture, asked: dict[str, Any]) -> Picture:
    width, height = picture.size
    return shrunk(picture, tuple(asked["seen"][f"{width}x{height}"]))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def _limit_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, wherever it is


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
