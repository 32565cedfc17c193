"""Grounding markup of the Qwen-VL line: `<ref>label</ref><box>(x1,y1),(x2,y2)</box>` in an answer's text.

Numbers are integers on a grid of 0..999 over each side of the picture (arXiv 2308.12966, section 3); several boxes may
follow one label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_edge.families.boxes import GRID

_POINT = r"\s*\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\s*"
_BOX = re.compile(",".join([_POINT] * 2))
_QUAD = re.compile(",".join([_POINT] * 4))


@dataclass(frozen=True)
class Markup:
    """The tag names of a model's grounding markup, without brackets: <ref>, <box>, <quad>."""

    ref: str = "ref"
    box: str = "box"
    quad: str = "quad"

    @property
    def tags(self) -> tuple[str, ...]:
        """All opening and closing tags."""
        return tuple(tag for name in (self.ref, self.box, self.quad) for tag in (f"<{name}>", f"</{name}>"))


@dataclass(frozen=True)
class GridShape:
    """A box (2 points) or quad (4) on the grid; `offset` is its place in the clean text, `source` its markup.

    ref: number of the label that it follows, in the reader's `labels`; None if it has none.
    """

    label: str
    points: tuple[tuple[int, int], ...]
    offset: int
    source: str
    ref: int | None = None


class MarkupReader:
    """Splits text that arrives in pieces into clean text and shapes; a torn tag is held back until whole.

    `shapes`, `labels` (the marked phrases) and `malformed` (markup that names no place: bad numbers, tags left open or
    closed twice) fill as it reads.
    """

    def __init__(self, markup: Markup) -> None:
        self._markup = markup
        self._tag = re.compile("|".join(map(re.escape, markup.tags)))
        self._pending = ""
        self._open: str | None = None
        self._body = ""
        self._label: int | None = None
        self._length = 0
        self.shapes: list[GridShape] = []
        self.labels: list[str] = []
        self.malformed: list[str] = []

    def feed(self, text: str) -> str:
        """Read a piece of the answer; return the clean text that is now certain."""
        self._pending += text
        clean = []
        start = 0
        for match in self._tag.finditer(self._pending):
            clean.append(self._text(self._pending[start : match.start()]))
            clean.append(self._take_tag(match.group()))
            start = match.end()
        held = self._torn_tag_length(start)
        end = len(self._pending) - held
        clean.append(self._text(self._pending[start:end]))
        self._pending = self._pending[end:]
        return "".join(clean)

    def mark(self, label: str) -> int:
        """Take a marked phrase as it stands, whatever it looks like; return its length in the clean text."""
        self._reject_open()
        self._label = len(self.labels)
        self.labels.append(label.strip())
        self._length += len(label)
        return len(label)

    def finish(self) -> str:
        """End the answer; return the rest of the clean text. Markup still open is recorded as malformed."""
        rest = self._text(self._pending)
        self._pending = ""
        self._reject_open()
        return rest

    def _torn_tag_length(self, start: int) -> int:
        at = self._pending.rfind("<", start)
        if at < 0:
            return 0
        tail = self._pending[at:]
        return len(tail) if any(tag.startswith(tail) for tag in self._markup.tags) else 0

    def _text(self, text: str) -> str:
        if self._open is not None:
            self._body += text
        elif text.strip():
            self._label = None  # only a box directly after a label carries it
        if self._open in (self._markup.box, self._markup.quad):
            return ""
        self._length += len(text)
        return text

    def _take_tag(self, tag: str) -> str:
        name = tag.strip("</>")
        if not tag.startswith("</"):
            self._reject_open()
            self._open, self._body = name, ""
            if name == self._markup.ref:
                self._label = None
        elif self._open != name:
            self._reject_open()
            self.malformed.append(tag)
        else:
            self._close(name)
        return ""

    def _close(self, name: str) -> None:
        if name == self._markup.ref:
            self._label = len(self.labels)
            self.labels.append(self._body.strip())
        else:
            points = parse_points(self._body, corners=2 if name == self._markup.box else 4)
            source = f"<{name}>{self._body}</{name}>"
            if points is None:
                self.malformed.append(source)
            else:
                label = "" if self._label is None else self.labels[self._label]
                self.shapes.append(GridShape(label, points, self._length, source, self._label))
        self._open = None

    def _reject_open(self) -> None:
        if self._open is not None:
            self.malformed.append(f"<{self._open}>{self._body}")
            self._open = None


def parse_points(text: str, *, corners: int) -> tuple[tuple[int, int], ...] | None:
    """Return the `corners` (2 or 4) points of "(x1,y1),(x2,y2)...", or None if the text is not of that form."""
    match = (_BOX if corners == 2 else _QUAD).fullmatch(text)
    if match is None:
        return None
    numbers = [int(group) for group in match.groups()]
    if max(numbers) > GRID:
        return None
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def format_points(points: Sequence[tuple[int, int]]) -> str:
    """Return grid points in the model's notation: "(x1,y1),(x2,y2)"."""
    return ",".join(f"({x},{y})" for x, y in points)
