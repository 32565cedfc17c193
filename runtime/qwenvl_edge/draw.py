"""Boxes and quads drawn on a picture, with labels that stay readable and inside it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qwenvl_edge.grounding import Box, Quad

# Colours apart in hue and lightness (Okabe and Ito's palette, safe for colour-blind readers).
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "C:/Windows/Fonts")
_CJK_FONTS = ("NotoSansCJK", "NotoSansSC", "SourceHanSans", "wqy-", "DroidSansFallback", "PingFang", "msyh", "simsun")

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_shapes(image: Image.Image, boxes: Iterable[Box], quads: Iterable[Quad] = ()) -> Image.Image:
    """Draw boxes and quads, given in pixels of `image`, onto it and return it; one colour a label."""
    draw = ImageDraw.Draw(image)
    side = min(image.size)
    width = max(1, round(side / 150))
    outlines = [(box.label, _box_corners(box)) for box in boxes] + [(quad.label, quad.points) for quad in quads]
    colours: dict[str, str] = {}
    for label, corners in outlines:
        colour = colours.setdefault(label, _COLOURS[len(colours) % len(_COLOURS)])
        draw.line([*corners, corners[0]], fill=colour, width=width, joint="curve")
    for label, corners in outlines:  # labels last, so that no outline crosses one
        if label:
            _draw_label(image, label, corners, colours[label], max(11, round(side / 25)))
    return image


def _box_corners(box: Box) -> tuple[tuple[float, float], ...]:
    return (box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2)


def _draw_label(image: Image.Image, label: str, corners: Sequence[tuple[float, float]], colour: str, size: int) -> None:
    draw = ImageDraw.Draw(image)
    image_width, image_height = image.size
    text, font = _printable(label, size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(1, size // 8)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    left_edge, top_edge = (min(values) for values in zip(*corners, strict=True))
    x = max(0.0, min(left_edge, image_width - width))
    y = max(0.0, min(top_edge - height if top_edge >= height else top_edge, image_height - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + pad - left, y + pad - top), text, fill=_contrast(colour), font=font)


def _contrast(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _printable(label: str, size: int) -> tuple[str, _Font]:
    """Return the label and a font that has its characters; characters that no font here has are escaped (\\u72d7)."""
    text = "".join(char if char.isprintable() else " " for char in label)
    if all(ord(char) < 0x250 for char in text):
        return text, ImageFont.load_default(size)
    path = _cjk_font()
    if path is not None:
        return text, ImageFont.truetype(str(path), size)
    return text.encode("ascii", "backslashreplace").decode(), ImageFont.load_default(size)


@functools.lru_cache(maxsize=1)
def _cjk_font() -> Path | None:
    """Return the system's first font file with Chinese characters, or None."""
    for folder in map(Path, _FONT_FOLDERS):
        if folder.is_dir():
            for path in sorted(folder.rglob("*.tt[fc]")) + sorted(folder.rglob("*.otf")):
                if path.name.startswith(_CJK_FONTS):
                    return path
    return None
