"""Places as models write them: read from an answer's tags, scaled to pixels of the original picture, grouped by labels.

Most families write integers on a grid over each side of the picture (arXiv 2308.12966, section 3). An answer of
Qwen-VL says `<ref>label</ref><box>(x1,y1),(x2,y2)</box>`, one of Qwen2-VL the same with other tags; several boxes may
follow one label. json_places.py reads those of the later families.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PictureLayout, Piece
from qwenvl_edge.families.places import GRID, Box, Place, Point, Quad, Ref
from qwenvl_edge.families.readers import GridShape, PlaceReader, Points

_POINT = r"\s*\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\s*"
_BOX = re.compile(",".join([_POINT] * 2))
_QUAD = re.compile(",".join([_POINT] * 4))
_NUMBER = re.compile(r"(?<![\w.+-])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_Tags: TypeAlias = tuple[str, str]


def to_pixels(points: Points, size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Scale grid points to pixels of a picture of `size` (width, height)."""
    width, height = size
    return tuple((x * width / GRID, y * height / GRID) for x, y in points)


def place(
    shapes: Sequence[GridShape],
    images: Sequence[int],
    scales: Sequence[Callable[[Points], tuple[tuple[float, float], ...]]],
) -> list[Place]:
    """Scale shapes to pixels.

    Args:
        shapes: as a model wrote them.
        images: the number of each shape's picture.
        scales: of every picture, a function from points as a model writes them to pixels.
    """
    placed: list[Place] = []
    for shape, image in zip(shapes, images, strict=True):
        points = scales[image](shape.points)
        if len(points) == 4:
            placed.append(Quad(shape.label, points, image))
        elif len(points) == 1:
            placed.append(Point(shape.label, *points[0], image))
        else:
            (xa, ya), (xb, yb) = points
            placed.append(Box(shape.label, min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb), image))
    return placed


def corners(place: Place) -> tuple[tuple[float, float], ...]:
    """Return the points (x, y) of a place: upper left and lower right of a box, the four of a quad, or the point."""
    if isinstance(place, Box):
        return (place.x1, place.y1), (place.x2, place.y2)
    return place.points if isinstance(place, Quad) else ((place.x, place.y),)


def boxes_of(places: Iterable[Place]) -> tuple[Box, ...]:
    """Return the boxes among some places."""
    return tuple(place for place in places if isinstance(place, Box))


def quads_of(places: Iterable[Place]) -> tuple[Quad, ...]:
    """Return the quads among some places."""
    return tuple(place for place in places if isinstance(place, Quad))


def points_of(places: Iterable[Place]) -> tuple[Point, ...]:
    """Return the points among some places."""
    return tuple(place for place in places if isinstance(place, Point))


def refs_of(labels: Mapping[int, str], shapes: Sequence[GridShape], places: Sequence[Place]) -> tuple[Ref, ...]:
    """Group places (those of `shapes`, in order) by the labels that they follow."""
    found = []
    for number, label in labels.items():
        own = [place for shape, place in zip(shapes, places, strict=True) if shape.ref == number]
        found.append(Ref(label, boxes_of(own), quads_of(own), points_of(own)))
    return tuple(found)


class WrittenNumbers:
    """The numbers of an answer, some of them replaced."""

    def __init__(self, text: str) -> None:
        self._text = text
        found = list(_NUMBER.finditer(text))
        self._starts = [number.start() for number in found]
        self._values: list[int | None] = [_rounded(number.group()) for number in found]
        self._new: dict[int, int] = {}
        self._source = self._next = 0  # where the last one was found, and the number after its own

    def replace(self, source: str, old: Sequence[int], new: Sequence[int]) -> None:
        """Replace the first numbers in a row that are, rounded, `old` in a source; sources come in their order."""
        start = self._text.find(source, self._source)
        while start >= 0:
            first = bisect_left(self._starts, start)
            end = bisect_left(self._starts, start + len(source)) - len(old) + 1
            # A source may name several places, mostly one after the other.
            for at in chain(range(max(first, self._next), end), range(first, min(end, self._next))):
                if self._values[at : at + len(old)] == old:
                    self._new |= zip(self._starts[at : at + len(old)], new, strict=True)
                    self._values[at : at + len(old)] = [None] * len(old)
                    self._source, self._next = start, at + len(old)
                    return
            start = self._text.find(source, start + 1)

    def text(self) -> str:
        """Return the text."""
        return _NUMBER.sub(lambda found: str(self._new.get(found.start(), found.group())), self._text)


def _rounded(number: str) -> int | None:
    value = float(number)
    return round(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Markup:
    """The opening and closing tags of a model's grounding markup."""

    ref: _Tags = ("<ref>", "</ref>")
    box: _Tags = ("<box>", "</box>")
    quad: _Tags = ("<quad>", "</quad>")

    @property
    def tags(self) -> tuple[str, ...]:
        """All opening and closing tags."""
        return (*self.ref, *self.box, *self.quad)

    @property
    def closing(self) -> tuple[str, ...]:
        """The closing tags."""
        return self.ref[1], self.box[1], self.quad[1]

    def pair(self, tag: str) -> _Tags:
        """Return the pair that a tag belongs to."""
        return next(pair for pair in (self.ref, self.box, self.quad) if tag in pair)


class MarkupReader(PlaceReader):
    """Reads an answer with grounding markup; a torn tag is held back until whole.

    `malformed` are bad numbers and tags left open or closed twice.
    """

    def __init__(self, markup: Markup) -> None:
        self._markup = markup
        self._tag = re.compile("|".join(map(re.escape, markup.tags)))
        self._pending = ""
        self._open: _Tags | None = None
        self._body = ""
        self._label: int | None = None
        self._length = 0
        self.shapes: list[GridShape] = []
        self.labels: list[str] = []
        self.malformed: list[str] = []

    def feed(self, text: str) -> str:
        """See PlaceReader.feed."""
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
        """See PlaceReader.mark."""
        self._reject_open()
        self._label = len(self.labels)
        self.labels.append(label.strip())
        self._length += len(label)
        return len(label)

    def begin(self) -> None:
        """See PlaceReader.begin."""
        self.shapes.clear()
        self.malformed.clear()

    def finish(self) -> str:
        """See PlaceReader.finish."""
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
        pair = self._markup.pair(tag)
        if tag == pair[0]:
            self._reject_open()
            self._open, self._body = pair, ""
            if pair == self._markup.ref:
                self._label = None
        elif self._open != pair:
            self._reject_open()
            self.malformed.append(tag)
        else:
            self._close(pair)
        return ""

    def _close(self, pair: _Tags) -> None:
        if pair == self._markup.ref:
            self._label = len(self.labels)
            self.labels.append(self._body.strip())
        else:
            points = parse_points(self._body, corners=2 if pair == self._markup.box else 4)
            source = f"{pair[0]}{self._body}{pair[1]}"
            if points is None:
                self.malformed.append(source)
            else:
                label = "" if self._label is None else self.labels[self._label]
                self.shapes.append(GridShape(label, points, self._length, source, self._label))
        self._open = None

    def _reject_open(self) -> None:
        if self._open is not None:
            self.malformed.append(f"{self._open[0]}{self._body}")
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


def format_points(points: Points) -> str:
    """Return grid points in the model's notation: "(x1,y1),(x2,y2)"."""
    return ",".join(f"({x},{y})" for x, y in points)


def box_grammar(markup: Markup, special_tokens: Mapping[str, int], number: str) -> str:
    """Return the Lark grammar of one or more boxes; control tokens are written as <[id]>.

    number: a regular expression of a coordinate.
    """

    def between(tags: _Tags, content: str) -> str:
        return f"<[{special_tokens[tags[0]]}]> {content} <[{special_tokens[tags[1]]}]>"

    corners = '"(" NUMBER "," NUMBER "),(" NUMBER "," NUMBER ")"'
    return rf"""
        start: item+
        item: ({between(markup.ref, "LABEL")})? box+
        box: {between(markup.box, corners)}
        NUMBER: /{number}/
        LABEL: /[^<>\n]{{1,80}}/
    """


class MarkupFamily(Family):
    """A family that writes places in tags, on the grid.

    markup: the tags. coordinate: a regular expression of a coordinate.
    """

    markup: Markup
    coordinate: str

    @property
    def markup_tags(self) -> tuple[str, ...]:
        """See Family.markup_tags."""
        return self.markup.tags

    @property
    def closing_tags(self) -> tuple[str, ...]:
        """See Family.closing_tags."""
        return self.markup.closing

    def region(
        self, label: str | None, grid_boxes: Sequence[Points], layout: PictureLayout | None = None
    ) -> list[Piece]:
        """See Family.region."""
        pieces = [] if label is None else self._tagged(self.markup.ref, label)
        return pieces + [piece for box in grid_boxes for piece in self._tagged(self.markup.box, format_points(box))]

    def _tagged(self, tags: tuple[str, str], text: str) -> list[Piece]:
        return [self.special_tokens[tags[0]], text, self.special_tokens[tags[1]]]

    def reader(self) -> MarkupReader:
        """See Family.reader."""
        return MarkupReader(self.markup)

    def box_grammar(self) -> str:
        """See Family.box_grammar."""
        return box_grammar(self.markup, self.special_tokens, self.coordinate)

    def to_pixels(
        self, points: Points, size: tuple[int, int], layout: PictureLayout
    ) -> tuple[tuple[float, float], ...]:
        """See Family.to_pixels; the points lie on the grid."""
        return to_pixels(points, size)
