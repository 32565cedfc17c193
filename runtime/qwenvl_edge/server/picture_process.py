"""The process in which a server decodes large pictures; run as a module of its own.

Decoding one takes as long as a hundred tokens. In a thread it would hold the interpreter, which every token of every
answer needs, and at a low priority hold it the longer. Here it has its own, and limits of memory and computing time.

    python -m qwenvl_edge.server.picture_process MEGABYTES SECONDS

reads per picture a line of JSON on stdin, {"bytes": N, "name": ..., "seen": {"WxH": [w, h], ...}}, and N bytes of an
image file. It answers with a line, {"shape": [H, W, 3], "size": [W, H]} (of what follows, and of the original), and
the pixels; or {"error": a sentence}. A picture beyond the limits may end the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

import numpy as np

from qwenvl_edge.constraints.trial import limit_memory
from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.shrink import shrunk
from qwenvl_edge.machine.memory import give_back

_NICENESS = 5  # answers come first


def main(megabytes: int, seconds: float) -> None:
    """Decode the pictures that come on stdin until it ends."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to end
    limit_memory(megabytes << 20)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        data = sys.stdin.buffer.read(asked["bytes"])
        _limit_time(seconds)
        answer, picture = _decoded(data, asked)
        _limit_time(0)
        del data
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if picture is not None:
            sys.stdout.buffer.write(np.ascontiguousarray(picture.pixels).data)
        sys.stdout.buffer.flush()
        del picture
        give_back()


def _decoded(data: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], Picture | None]:
    name = asked["name"]
    try:
        picture = load_picture(data, name=name)
        width, height = picture.size
        picture = shrunk(picture, tuple(asked["seen"][f"{width}x{height}"]))
    except ImageError as error:
        return {"error": str(error)}, None
    except (MemoryError, KeyError):  # KeyError: it is not as large as its header says
        return {"error": f"{name} cannot be decoded; send it smaller, or as a plain JPEG or PNG."}, None
    return {"shape": picture.pixels.shape, "size": picture.size}, picture


def _limit_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, wherever it is


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
