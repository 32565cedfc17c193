"""Names of colours: which one fits a picture of a thing, and how a picture gets another colour."""

from __future__ import annotations

import colorsys

import numpy as np

from tools.nano.drawing import base_colour

RGB = tuple[int, int, int]
_SURE = 0.62  # share of a picture's area that a colour must have to be its name
_HUES = (  # hue up to which a name goes, in turns
    (0.03, "red"),
    (0.105, "orange"),
    (0.19, "yellow"),
    (0.46, "green"),
    (0.70, "blue"),
    (0.84, "purple"),
    (0.945, "pink"),
    (1.01, "red"),
)


def name_of(red: float, green: float, blue: float) -> str:
    """The name of one colour; channels 0..1."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.22:
        return "black"
    if saturation < 0.14:
        return "white" if value > 0.87 else "grey" if value < 0.78 else "pale"
    if saturation < 0.28:
        return "pale"  # no name fits for sure
    name = next(name for upper, name in _HUES if hue <= upper)
    if name in ("red", "orange") and value < 0.66 and hue > 0.01:
        return "brown"
    if name == "red" and saturation < 0.6 and value > 0.8:
        return "pink"
    return name


def dominant(pixels: np.ndarray) -> str | None:
    """The colour of a picture RGBA [H, W, 4], or None where no name fits most of it."""
    small = pixels[::4, ::4].reshape(-1, 4)
    seen = small[small[:, 3] > 128][:, :3] / 255
    if not len(seen):
        return None
    names, counts = np.unique([name_of(*each) for each in seen], return_counts=True)
    best = int(counts.argmax())
    sure = counts[best] >= _SURE * len(seen) and names[best] != "pale"
    return str(names[best]) if sure else None


def shade_of(name: str, rng: np.random.Generator) -> RGB:
    """A shade that a person would call by this name."""
    ranges = {"brown": (0.06, (0.6, 0.8), (0.38, 0.52)), "pink": (0.93, (0.35, 0.5), (0.92, 1.0))}
    if name == "grey":
        level = int(rng.integers(110, 150))
        return (level, level, level)
    if name not in ranges:
        return base_colour(name, rng)
    hue, saturation, value = ranges[name]
    hue += float(rng.uniform(-0.012, 0.012))
    channels = colorsys.hsv_to_rgb(hue, float(rng.uniform(*saturation)), float(rng.uniform(*value)))
    return (int(channels[0] * 255), int(channels[1] * 255), int(channels[2] * 255))


def tinted(pixels: np.ndarray, colour: RGB) -> np.ndarray:
    """A picture RGBA [H, W, 4] in shades of one colour: what was dark stays darker, what was light lighter."""
    light = pixels[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    weight = pixels[..., 3] > 128
    middle = float(np.median(light[weight])) if weight.any() else 0.5
    offset = np.clip((light - middle) * 1.3, -0.65, 0.45)[..., None]
    target = np.array(colour, np.float32)
    painted = np.where(offset < 0, target * (1 + offset), target + (255 - target) * offset * 0.8)
    return np.concatenate([np.clip(painted, 0, 255).astype(np.uint8), pixels[..., 3:]], axis=-1)
