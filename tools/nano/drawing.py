"""Draws scenes with Pillow. Backgrounds may be crops of scikit-image's sample photographs."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.nano.scenes import Scene, Thing
from tools.nano.signs import draw_sign

RGB = tuple[int, int, int]
HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.36, "blue": 0.61, "purple": 0.79}
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel", "camera", "coins", "moon")


def base_colour(name: str, rng: np.random.Generator) -> RGB:
    """A shade that a person would call by this name."""
    if name == "white":
        grey = int(rng.integers(232, 256))
        return (grey, grey, grey)
    if name == "black":
        grey = int(rng.integers(12, 42))
        return (grey, grey, grey)
    hue = (HUES[name] + rng.uniform(-0.012, 0.012)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1.0), rng.uniform(0.72, 0.95))
    return (int(red * 255), int(green * 255), int(blue * 255))


def shade(colour: RGB, factor: float) -> RGB:
    """Lighter (factor > 1, towards white) or darker."""
    if factor > 1:
        return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]
    return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]


class Pen:
    """Draws inside a thing's box with coordinates 0..1; `flipped` mirrors them."""

    def __init__(self, image: Image.Image, thing: Thing, colour: RGB):
        self.draw = ImageDraw.Draw(image)
        x0, y0, x1, y1 = thing.box
        self.left, self.top = x0 * image.width, y0 * image.height
        self.width, self.height = (x1 - x0) * image.width - 1, (y1 - y0) * image.height - 1
        self.flipped, self.colour = thing.flipped, colour
        self.edge = shade(colour, 0.45) if sum(colour) > 150 else (105, 105, 110)
        self.line = max(1, round(image.width / 130))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Box coordinates to pixels."""
        return (self.left + (1 - x if self.flipped else x) * self.width, self.top + y * self.height)

    def _rect(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        (ax, ay), (bx, by) = self.at(x0, y0), self.at(x1, y1)
        return [min(ax, bx), ay, max(ax, bx), by]

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None, line: bool = True) -> None:
        """Filled ellipse."""
        self.draw.ellipse(self._rect(x0, y0, x1, y1), fill or self.colour, self.edge if line else None, self.line)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None, line: bool = True) -> None:
        """Filled rectangle."""
        self.draw.rectangle(self._rect(x0, y0, x1, y1), fill or self.colour, self.edge if line else None, self.line)

    def polygon(self, points: list[tuple[float, float]], fill: RGB | None = None, line: bool = True) -> None:
        """Filled polygon."""
        self.draw.polygon([self.at(*p) for p in points], fill or self.colour, self.edge if line else None, self.line)

    def arc(self, x0: float, y0: float, x1: float, y1: float, thick: float, colour: RGB | None = None) -> None:
        """Ring, `thick` as a part of the box's width."""
        self.draw.ellipse(self._rect(x0, y0, x1, y1), None, colour or self.colour, max(2, round(thick * self.width)))


def _mug(pen: Pen) -> None:
    pen.arc(0.55, 0.2, 1.0, 0.78, 0.11, pen.edge)
    pen.arc(0.565, 0.22, 0.985, 0.76, 0.08)
    pen.polygon([(0.0, 0.06), (0.74, 0.06), (0.7, 1.0), (0.04, 1.0)])
    pen.ellipse(0.0, 0.0, 0.74, 0.16, shade(pen.colour, 0.6))
    pen.rect(0.12, 0.3, 0.2, 0.85, shade(pen.colour, 1.45), line=False)


def _ball(pen: Pen) -> None:
    pen.ellipse(0, 0, 1, 1)
    pen.ellipse(0.1, 0.08, 0.62, 0.6, shade(pen.colour, 1.18), line=False)
    pen.ellipse(0.22, 0.17, 0.42, 0.36, shade(pen.colour, 1.6), line=False)


def _star(pen: Pen) -> None:
    points = []
    for i in range(10):
        radius = 0.5 if i % 2 == 0 else 0.21
        angle = math.pi * i / 5 - math.pi / 2
        points.append((0.5 + radius * math.cos(angle) * 1.05, 0.525 + radius * math.sin(angle) * 1.05))
    pen.polygon([(min(max(x, 0), 1), min(max(y, 0), 1)) for x, y in points])


def _house(pen: Pen) -> None:
    pen.rect(0.1, 0.42, 0.9, 1.0)
    pen.polygon([(0.0, 0.46), (0.5, 0.0), (1.0, 0.46)], shade(pen.colour, 0.68))
    pen.rect(0.4, 0.65, 0.6, 1.0, shade(pen.colour, 0.35))
    pen.rect(0.18, 0.55, 0.34, 0.72, (235, 240, 250))
    pen.rect(0.66, 0.55, 0.82, 0.72, (235, 240, 250))


def _tree(pen: Pen) -> None:
    pen.rect(0.4, 0.7, 0.6, 1.0, (110, 72, 40))
    for top, bottom, half in ((0.36, 0.8, 0.5), (0.18, 0.58, 0.4), (0.0, 0.36, 0.28)):
        pen.polygon([(0.5 - half, bottom), (0.5, top), (0.5 + half, bottom)])


def _car(pen: Pen) -> None:
    pen.polygon([(0.2, 0.42), (0.32, 0.0), (0.68, 0.0), (0.82, 0.42)], shade(pen.colour, 0.85))
    pen.polygon([(0.28, 0.4), (0.36, 0.1), (0.49, 0.1), (0.49, 0.4)], (205, 228, 240))
    pen.polygon([(0.53, 0.4), (0.53, 0.1), (0.65, 0.1), (0.74, 0.4)], (205, 228, 240))
    pen.rect(0.0, 0.38, 1.0, 0.82)
    pen.rect(0.9, 0.48, 1.0, 0.6, (255, 240, 150))
    for x in (0.14, 0.64):
        pen.ellipse(x, 0.6, x + 0.24, 1.0, (25, 25, 28))
        pen.ellipse(x + 0.07, 0.72, x + 0.17, 0.88, (170, 170, 175), line=False)


def _fish(pen: Pen) -> None:
    pen.polygon([(0.66, 0.5), (1.0, 0.06), (0.93, 0.5), (1.0, 0.94)], shade(pen.colour, 0.75))
    pen.ellipse(0.0, 0.1, 0.78, 0.9)
    pen.polygon([(0.3, 0.14), (0.45, 0.0), (0.6, 0.16)], shade(pen.colour, 0.75))
    pen.ellipse(0.12, 0.32, 0.24, 0.52, (250, 250, 250))
    pen.ellipse(0.155, 0.38, 0.215, 0.48, (10, 10, 10), line=False)


def _bottle(pen: Pen) -> None:
    pen.rect(0.34, 0.0, 0.66, 0.1, shade(pen.colour, 0.5))
    pen.polygon(
        [(0.36, 0.1), (0.64, 0.1), (0.66, 0.26), (1.0, 0.42), (1.0, 1.0), (0.0, 1.0), (0.0, 0.42), (0.34, 0.26)]
    )
    pen.rect(0.0, 0.55, 1.0, 0.8, shade(pen.colour, 1.7 if sum(pen.colour) < 560 else 0.75))


def _umbrella(pen: Pen) -> None:
    pen.rect(0.465, 0.4, 0.535, 0.94, (70, 60, 55), line=False)
    pen.arc(0.465, 0.8, 0.7, 1.0, 0.06, (70, 60, 55))
    pen.draw.pieslice(pen._rect(0.0, 0.0, 1.0, 1.0), 180, 360, pen.colour, pen.edge, pen.line)
    for x in (0.0, 0.333, 0.667):
        pen.ellipse(x, 0.44, x + 0.333, 0.58, shade(pen.colour, 0.6), line=False)


def _heart(pen: Pen) -> None:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 32, (11.9 - y) / 28.9))
    pen.polygon([(x, min(max(y, 0), 1)) for x, y in points])
    pen.ellipse(0.18, 0.14, 0.34, 0.32, shade(pen.colour, 1.5), line=False)


DRAW: dict[str, Callable[[Pen], None]] = {
    "mug": _mug,
    "ball": _ball,
    "star": _star,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "fish": _fish,
    "bottle": _bottle,
    "umbrella": _umbrella,
    "heart": _heart,
}


@functools.cache
def _photo(name: str) -> Image.Image | None:
    from skimage import data

    try:
        return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
    except Exception:  # a photograph that this scikit-image would have to download
        return None


def _texture(rng: np.random.Generator, size: tuple[int, int], cells: int, spread: float) -> np.ndarray:
    grid = rng.normal(0, spread, (cells, cells, 3)) + rng.uniform(60, 200, 3)
    small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def _photo_crop(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image | None:
    photo = _photo(PHOTOS[rng.integers(len(PHOTOS))])
    if photo is None:
        return None
    side = int(min(photo.size) * rng.uniform(0.3, 1.0))
    x, y = int(rng.integers(photo.width - side + 1)), int(rng.integers(photo.height - side + 1))
    crop = photo.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return crop.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3.0)) * size[0] / 224))


def background(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture to draw on. Contrast is kept lower than that of the things."""
    width, height = size
    if kind == "photo":
        crop = _photo_crop(rng, size)
        if crop is not None:
            return Image.blend(crop, Image.new("RGB", size, (128, 128, 128)), float(rng.uniform(0.1, 0.4)))
    if kind == "plain":
        return Image.new("RGB", size, tuple(int(c) for c in rng.integers(50, 235, 3)))
    if kind == "gradient":
        field = _texture(rng, size, 2, 45)
    elif kind == "stripes":
        period = rng.uniform(10, 40) * width / 224
        phase = np.add.outer(np.arange(height) * rng.uniform(-1, 1), np.arange(width) * rng.uniform(-1, 1))
        field = rng.uniform(70, 200, 3) + rng.uniform(6, 22) * np.sin(phase * 2 * np.pi / period)[..., None]
    elif kind == "room":
        field = np.empty((height, width, 3), np.float32)
        line = int(height * rng.uniform(0.45, 0.75))
        field[:line] = rng.uniform(110, 235, 3)
        field[line:] = rng.uniform(50, 160, 3) + rng.normal(0, 5, (height - line, 1, 1))
    else:
        field = _texture(rng, size, int(rng.integers(4, 24)), rng.uniform(10, 40))
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


def lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in another light: brightness that changes across it, a tint, and noise."""
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.add.outer(np.linspace(-1, 1, height) * np.sin(angle), np.linspace(-1, 1, width) * np.cos(angle))
    gain = rng.uniform(0.78, 1.12) + rng.uniform(0, 0.14) * ramp[..., None]
    pixels = pixels * gain * rng.uniform(0.96, 1.04, 3)
    coarse = rng.normal(0, rng.uniform(0, 6), (height, width, 1))
    return Image.fromarray(np.clip(pixels + coarse, 0, 255).astype(np.uint8))


def render(scene: Scene, scale: float = 1.0) -> Image.Image:
    """The scene as an RGB picture of canvas x scale pixels."""
    rng = np.random.default_rng(scene.look)
    size = (round(scene.canvas[0] * scale), round(scene.canvas[1] * scale))
    image = background(scene.background, size, rng)
    for thing in scene.things:
        x0, _, x1, y1 = thing.box
        if rng.random() < 0.6:
            veil = ImageDraw.Draw(image, "RGBA")
            drop = (x1 - x0) * 0.12
            veil.ellipse(
                [x0 * size[0], (y1 - drop) * size[1], x1 * size[0], min(y1 + drop / 2, 1) * size[1]], (0, 0, 0, 70)
            )
        DRAW[thing.kind](Pen(image, thing, base_colour(thing.colour, rng)))
    for sign in scene.signs:
        draw_sign(image, sign)
    image = lit(image, rng)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)) * scale)) if rng.random() < 0.3 else image
