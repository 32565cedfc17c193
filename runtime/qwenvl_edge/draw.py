"""Boxes and quads drawn on a picture, with labels that stay readable and inside it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from qwenvl_edge.grounding import Box, Quad

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
_NO_CHARACTER = "\uffff"  # drawn as the font's sign for a missing character

_Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
_Corners: TypeAlias = "Sequence[tuple[float, float]]"


def draw_shapes(image: Image.Image, boxes: Iterable[Box], quads: Iterable[Quad] = ()) -> Image.Image:
    """Draw boxes and quads, given in pixels of `image`, onto it and return it; one colour a label."""
    draw = ImageDraw.Draw(image)
    side = min(image.size)
    line = max(1, round(side / 150))
    outlines = [(box.label, _box_corners(box)) for box in boxes] + [(quad.label, quad.points) for quad in quads]
    colours: dict[str, str] = {}
    for label, corners in outlines:
        colour = colours.setdefault(label, _COLOURS[len(colours) % len(_COLOURS)])
        inside = [(min(x, image.width - 1), min(y, image.height - 1)) for x, y in corners]
        outline = [*inside, inside[0], inside[1]]
        draw.line(outline, fill="black", width=line + 2, joint="curve")  # an edge that shows on any background
        draw.line(outline, fill=colour, width=line, joint="curve")
    for label, corners in outlines:  # labels last, so that no outline crosses one
        if label:
            _draw_label(image, label, corners, colours[label], max(11, round(side / 25)))
    return image


def _box_corners(box: Box) -> tuple[tuple[float, float], ...]:
    return (box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2)


def _draw_label(image: Image.Image, label: str, corners: _Corners, colour: str, size: int) -> None:
    """Write the label above the shape's top left corner, or inside the shape where there is no room above."""
    draw = ImageDraw.Draw(image)
    text, font = _printable(label, size)
    pad = max(1, size // 8)
    text = _shorten(draw, text, font, image.width - 2 * pad)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    left_edge, top_edge = (min(values) for values in zip(*corners, strict=True))
    x = max(0.0, min(left_edge, image.width - width))
    y = max(0.0, min(top_edge - height if top_edge >= height else top_edge, image.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + pad - left, y + pad - top), text, fill=_contrast(colour), font=font)


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
