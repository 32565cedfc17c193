"""Boards with words or numbers: fonts, colours, where each letter is, and how they are drawn."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.nano.scenes import Box, Sign

SIGN_STYLES = (
    ((245, 245, 240), (20, 20, 20)),
    ((250, 210, 40), (15, 15, 15)),
    ((20, 90, 60), (245, 245, 245)),
    ((160, 20, 25), (250, 250, 250)),
    ((25, 50, 120), (250, 250, 250)),
    ((35, 35, 38), (250, 230, 120)),
    ((250, 250, 250), (190, 20, 30)),
    ((255, 255, 255), (20, 60, 150)),
    ((255, 244, 214), (90, 50, 20)),
    ((240, 130, 30), (30, 20, 10)),
    ((245, 200, 215), (110, 10, 60)),
    ((200, 230, 245), (10, 50, 90)),
    ((215, 240, 205), (20, 80, 30)),
    ((90, 30, 110), (250, 245, 250)),
    ((20, 20, 22), (250, 250, 250)),
    ((20, 20, 22), (90, 220, 120)),
    ((15, 90, 95), (230, 250, 245)),
    ((120, 70, 35), (250, 235, 200)),
    ((110, 115, 120), (250, 250, 250)),
    ((200, 205, 210), (25, 30, 40)),
    ((235, 70, 60), (255, 240, 90)),
    ((60, 140, 220), (255, 255, 255)),
    ((40, 50, 60), (120, 200, 250)),
    ((230, 225, 90), (140, 20, 20)),
)
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol", ""),
    *("DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBolIta", "cmss10", "cmb10", "cmtt10"),
)
DEFAULT_FONT = FONTS.index("")  # Pillow's own


@functools.lru_cache(maxsize=512)
def _font(index: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    import matplotlib

    if index == DEFAULT_FONT:
        return ImageFont.load_default(size)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{FONTS[index]}.ttf"), size)


@functools.cache
def _extent(font: int, text: str) -> tuple[float, float]:
    left, top, right, bottom = _font(font, 100).getbbox(text)
    return right - left, bottom - top


def _board(sign: Sign, canvas: tuple[int, int]) -> tuple[int, int]:
    (ax, ay), (bx, by), _, (dx, dy) = [(x * canvas[0], y * canvas[1]) for x, y in sign.quad]
    return round(math.hypot(bx - ax, by - ay)), round(math.hypot(dx - ax, dy - ay))


def _fit(sign: Sign, size: tuple[int, int]) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, tuple[float, float]]:
    """The largest font that leaves a margin on a board of `size` pixels, and where the text starts."""
    width, height = size
    edge = max(1, height // 16)
    wide, tall = _extent(sign.font, sign.text)
    guess = int(100 * min((width - 5 * edge) / wide, (height - 5 * edge) / tall))
    for points in range(min(height, guess + 3), 5, -1):
        font = _font(sign.font, points)
        left, top, right, bottom = font.getbbox(sign.text)
        if right - left <= width - 5 * edge and bottom - top <= height - 5 * edge:
            break
    return font, ((width - right - left) / 2, (height - bottom - top) / 2)


def letter_boxes(sign: Sign, canvas: tuple[int, int]) -> list[Box]:
    """Boxes of the letters of a sign, in fractions of a picture of `canvas` pixels (boxes are kept upright)."""
    width, height = _board(sign, canvas)
    font, (x, _) = _fit(sign, (width, height))
    _, top, _, bottom = font.getbbox(sign.text)
    slope, tall = math.tan(math.radians(sign.tilt)), (bottom - top) / 2
    cx, cy = (sign.box[0] + sign.box[2]) / 2 * canvas[0], (sign.box[1] + sign.box[3]) / 2 * canvas[1]
    boxes = []
    for i in range(len(sign.text)):
        start, end = (x + font.getlength(sign.text[:k]) - width / 2 for k in (i, i + 1))
        middle = cy - slope * (start + end) / 2
        box = (cx + start, middle - tall, cx + end, middle + tall)
        boxes.append((box[0] / canvas[0], box[1] / canvas[1], box[2] / canvas[0], box[3] / canvas[1]))
    return boxes


def draw_sign(image: Image.Image, sign: Sign) -> None:
    """Draw the board with its text, turned about its middle."""
    width, height = _board(sign, image.size)
    fill, ink = SIGN_STYLES[sign.style]
    board = Image.new("RGBA", (width, height), (*fill, 255))
    draw = ImageDraw.Draw(board)
    draw.rectangle([0, 0, width - 1, height - 1], outline=(*ink, 255), width=max(1, height // 16))
    font, origin = _fit(sign, (width, height))
    draw.text(origin, sign.text, (*ink, 255), font=font)
    if sign.tilt:
        board = board.rotate(sign.tilt, Image.Resampling.BICUBIC, expand=True)
    cx, cy = (sign.box[0] + sign.box[2]) / 2 * image.width, (sign.box[1] + sign.box[3]) / 2 * image.height
    image.paste(board, (round(cx - board.width / 2), round(cy - board.height / 2)), board)
