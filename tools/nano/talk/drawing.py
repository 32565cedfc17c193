"""Draws the scenes of the conversation models: sprites and drawn things, signs and light."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.nano.drawing import DRAW, Pen, background, lit
from tools.nano.scenes import Thing as DrawnThing
from tools.nano.signs import draw_sign
from tools.nano.talk.colours import shade_of, tinted
from tools.nano.talk.scenes import Scene, Stock, Thing


def _shadow(image: Image.Image, thing: Thing) -> None:
    x0, _, x1, y1 = thing.box
    drop = (x1 - x0) * 0.12
    veil = ImageDraw.Draw(image, "RGBA")
    corners = (x0 * image.width, (y1 - drop) * image.height, x1 * image.width, min(y1 + drop / 2, 1) * image.height)
    veil.ellipse(corners, (0, 0, 0, 70))


def _paste(image: Image.Image, pixels: np.ndarray, thing: Thing) -> None:
    x0, y0, x1, y1 = thing.box
    left, top = round(x0 * image.width), round(y0 * image.height)
    size = max(2, round(x1 * image.width) - left), max(2, round(y1 * image.height) - top)
    sprite = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if thing.flipped:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.paste(sprite.convert("RGB"), (left, top), sprite.getchannel("A"))


def render(scene: Scene, stock: Stock, scale: float = 1.0) -> Image.Image:
    """The scene as an RGB picture of canvas x scale pixels."""
    rng = np.random.default_rng(scene.look)
    size = (round(scene.canvas[0] * scale), round(scene.canvas[1] * scale))
    image = background(scene.background, size, rng)
    for thing in scene.things:
        if rng.random() < 0.6:
            _shadow(image, thing)
        shade = shade_of(thing.colour, rng) if thing.colour else (0, 0, 0)
        sprite = stock.sprite(thing)
        if sprite is None:
            drawn = DrawnThing(thing.kind, thing.colour or "", thing.box, thing.flipped)
            DRAW[thing.kind](Pen(image, drawn, shade))
        else:
            _paste(image, tinted(sprite.pixels, shade) if thing.painted else sprite.pixels, thing)
    for sign in scene.signs:
        draw_sign(image, sign)
    image = lit(image, rng)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)) * scale)) if rng.random() < 0.3 else image
