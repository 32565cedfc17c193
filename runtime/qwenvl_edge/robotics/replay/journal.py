"""The answers so far, a line of JSON each, beside the output: an interrupted replay goes on after the last of them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.places import Box, Point, Quad
from qwenvl_edge.machine.urls import show
from qwenvl_edge.replies.reply import Reply


@dataclass(frozen=True)
class Entry:
    """An answer about a frame, or the error that the frame gave.

    log_ns: when the frame was logged. stamp: seconds and nanoseconds of its header. boxes, quads, points: in pixels.
    finish_reason: that of the reply; "error" if `text` says why there is no answer.
    """

    log_ns: int
    stamp: tuple[int, int]
    frame_id: str
    text: str
    finish_reason: str
    boxes: tuple[Box, ...] = ()
    quads: tuple[Quad, ...] = ()
    points: tuple[Point, ...] = ()

    @classmethod
    def of_reply(cls, log_ns: int, stamp: tuple[int, int], frame_id: str, reply: Reply) -> Entry:
        """Return the entry of a reply."""
        places = reply.boxes, reply.quads, reply.points
        return cls(log_ns, stamp, frame_id, reply.text, reply.finish_reason, *places)

    @classmethod
    def of_error(cls, log_ns: int, error: QwenVLError) -> Entry:
        """Return the entry of a frame that cannot be read."""
        return cls(log_ns, (0, 0), "", str(error), "error")

    @property
    def failed(self) -> bool:
        """True if there is no answer."""
        return self.finish_reason == "error"

    def to_json(self) -> str:
        """Return the entry as one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """Return the entry of a line that to_json made. Raises what a line of others leads to."""
        values = json.loads(line)
        quads = tuple(Quad(each["label"], _pairs(each["points"]), each["image"]) for each in values["quads"])
        boxes = tuple(Box(**each) for each in values["boxes"])
        points = tuple(Point(**each) for each in values["points"])
        stamp = int(values["stamp"][0]), int(values["stamp"][1])
        return cls(**{**values, "stamp": stamp, "boxes": boxes, "quads": quads, "points": points})


def _pairs(points: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)


class Journal:
    """A file of entries after a line that says which replay they belong to; one process at a time holds it.

    Args:
        path: the file; it is made if there is none.
        identity: everything that the answers depend on, as JSON's values.

    entries: those of an earlier, interrupted run.

    Raises:
        QwenVLError: the file belongs to another replay, or another process holds it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_over(json.dumps(identity, ensure_ascii=False, sort_keys=True))
        except BlockingIOError:
            self._file.close()
            raise QwenVLError(f"another replay writes {show(str(path))} now; give another --out.") from None
        except BaseException:
            self._file.close()
            raise

    def _take_over(self, identity: str) -> None:
        """Read an earlier run's entries and drop a last line that was cut."""
        whole = self._file.read()
        whole = whole[: whole.rfind("\n") + 1]
        first, *lines = whole.split("\n")
        if whole and first != identity:
            raise QwenVLError(
                f"{show(str(self.path))} holds the answers of another, interrupted replay (another recording, "
                "question, bundle or option); repeat that one to finish it, delete the file, or give another --out."
            )
        try:
            self.entries = [Entry.from_json(line) for line in lines if line]
        except (ValueError, TypeError, KeyError, IndexError):
            raise QwenVLError(f"{show(str(self.path))} is damaged; delete it.") from None
        self._file.seek(len(whole.encode()))
        self._file.truncate()
        if not whole:
            self._write(identity)

    def add(self, entry: Entry) -> None:
        """Append an entry. Raises QwenVLError if it cannot be written; those before it are kept."""
        self.entries.append(entry)
        self._write(entry.to_json())

    def _write(self, line: str) -> None:
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except OSError as error:
            raise QwenVLError(
                f"cannot write {show(str(self.path))}: {error.strerror}; the answers before are kept, run it again."
            ) from None

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Delete the file, whose answers are elsewhere by now."""
        self.path.unlink(missing_ok=True)
