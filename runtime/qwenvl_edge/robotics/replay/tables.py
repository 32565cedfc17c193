"""Answers of a replay as rows of a table and as CSV."""

from __future__ import annotations

import csv
import io
import json

from qwenvl_edge.robotics.replay.journal import Entry

COLUMNS = ("log_time_ns", "stamp", "frame_id", "text", "finish_reason", "boxes")
_NS = 10**9


def row(entry: Entry, start_ns: int) -> str:
    """Return an answer as a line: seconds since the recording's start, the text, and its boxes in whole pixels."""
    places = [f"{box.label} [{box.x1:.0f}, {box.y1:.0f}, {box.x2:.0f}, {box.y2:.0f}]".strip() for box in entry.boxes]
    text = " ".join(entry.text.split())
    words = f"no answer: {text}" if entry.failed else text
    return "  ".join([f"{(entry.log_ns - start_ns) / _NS:9.3f} s", words, *places])


def to_csv(entries: list[Entry]) -> bytes:
    """Return the answers as a CSV file in UTF-8, its first line the names of the columns.

    stamp: seconds with nine decimals. boxes: a JSON list of {label, x1, y1, x2, y2} in pixels.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        boxes = [
            {"label": box.label, **{side: round(getattr(box, side), 2) for side in ("x1", "y1", "x2", "y2")}}
            for box in entry.boxes
        ]
        stamp = f"{entry.stamp[0]}.{entry.stamp[1]:09d}"
        cells = (entry.log_ns, stamp, entry.frame_id, entry.text, entry.finish_reason)
        writer.writerow([*cells, json.dumps(boxes, ensure_ascii=False)])
    return file.getvalue().encode()
