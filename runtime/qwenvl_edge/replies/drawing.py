"""Boxes, quads and points drawn on a picture, with labels that stay readable, apart from each other and inside it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from qwenvl_edge.families.places import Box, Point, Quad
from qwenvl_edge.replies.labels import Rectangle, place_labels

# Colours apart in hue and lightness (Okabe and Ito's palette, safe for colour-blind readers).
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
# Pillow's built-in font has ASCII only. The package's has Latin and GB 2312, and whatever it lacks comes from the first
# of these that the system has.
_LABEL_FONT = Path(__file__).parent / "fonts" / "labels.ttf"
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "C:/Windows/Fonts")
_FONT_NAMES = (
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc", "simsun.ttc"),
    *("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"),
)
_CORNERS = 16  # of a circle
_NO_CHARACTER = "\uffff"  # drawn as the font's sign for a missing character

_Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
_Corners: TypeAlias = "Sequence[tuple[float, float]]"


class _Label(NamedTuple):
    """Words as they are drawn: from `start` in a rectangle of `size`, both in pixels."""

    text: str
    font: _Font
    start: tuple[float, float]
    size: tuple[int, int]


def draw_shapes(
    image: Image.Image, boxes: Iterable[Box], quads: Iterable[Quad] = (), points: Iterable[Point] = ()
) -> Image.Image:
    """Draw boxes, quads and points, given in pixels of `image`, onto it and return it; one colour a label."""
    draw = ImageDraw.Draw(image)
    side = min(image.size)
    line = max(1, round(side / 150))
    outlines: list[tuple[str, _Corners]] = [(box.label, _box_corners(box)) for box in boxes]
    outlines += [(quad.label, quad.points) for quad in quads]
    outlines += [(point.label, _circle(point, max(3, side / 50))) for point in points]
    colours: dict[str, str] = {}
    for label, corners in outlines:
        colour = colours.setdefault(label, _COLOURS[len(colours) % len(_COLOURS)])
        inside = [(min(max(x, 0), image.width - 1), min(max(y, 0), image.height - 1)) for x, y in corners]
        outline = [*inside, inside[0], inside[1]]
        draw.line(outline, fill="black", width=line + 2, joint="curve")  # an edge that shows on any background
        draw.line(outline, fill=colour, width=line, joint="curve")
    # Labels come last, so that no outline crosses one.
    labelled = [outline for outline in outlines if outline[0]]
    labels = [_label(draw, words, max(11, round(side / 25)), image.size) for words, _ in labelled]
    places = place_labels([_bounds(corners) for _, corners in labelled], [each.size for each in labels], image.size)
    for (words, _), each, (x1, y1, x2, y2) in zip(labelled, labels, places, strict=True):
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colours[words])
        draw.text((x1 + each.start[0], y1 + each.start[1]), each.text, _contrast(colours[words]), each.font)
    return image


def _box_corners(box: Box) -> tuple[tuple[float, float], ...]:
    return (box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2)


def _circle(point: Point, radius: float) -> _Corners:
    turns = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
    return [(point.x + radius * math.cos(turn), point.y + radius * math.sin(turn)) for turn in turns]


def _bounds(corners: _Corners) -> Rectangle:
    xs, ys = zip(*corners, strict=True)
    return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)), math.ceil(max(ys))


def _label(draw: ImageDraw.ImageDraw, words: str, size: int, picture: tuple[int, int]) -> _Label:
    """Set words in letters of `size` pixels, shortened to the picture's width."""
    text, font = _printable(words, size)
    pad = max(1, size // 8)
    text = _shorten(draw, text, font, picture[0] - 2 * pad)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad
    return _Label(text, font, (pad - left, pad - top), (min(width, picture[0]), min(height, picture[1])))


def _contrast(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while len(text) > 1 and draw.textlength(f"{text}...", font=font) > width:
        text = text[:-1]
    return f"{text}..."


def _printable(label: str, size: int) -> tuple[str, _Font]:
    """Return the label and a font that has its characters; where no font has them they are escaped (\\u72d7)."""
    text = "".join(char if char.isprintable() else " " for char in label)
    built_in = ImageFont.load_default(size)
    if text.isascii():
        return text, built_in
    for path in (_LABEL_FONT, *_system_fonts()):
        font = ImageFont.truetype(str(path), size)
        if _covers(font, text):
            return text, font
    return text.encode("ascii", "backslashreplace").decode(), built_in


def _covers(font: ImageFont.FreeTypeFont, text: str) -> bool:
    missing = bytes(font.getmask(_NO_CHARACTER))
    return all(char.isascii() or bytes(font.getmask(char)) != missing for char in text)


@functools.lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Return the font files of _FONT_NAMES that the system has."""
    files = [path for folder in map(Path, _FONT_FOLDERS) if folder.is_dir() for path in folder.rglob("*.[to]t[fc]")]
    return tuple(path for name in _FONT_NAMES for path in files if path.name == name)
