"""Scenes of the conversation models: what is in a picture, sampled from a seed, independent of how it is drawn.

All coordinates are fractions of the picture's sides, 0..1, left/top/right/bottom.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from tools.nano.scenes import ASPECT, BACKGROUNDS, Box, Sign, place, sample_text, tilted_quad
from tools.nano.scenes import COLOURS as DRAWN_COLOURS
from tools.nano.scenes import KINDS as DRAWN
from tools.nano.talk.icons import KEPT_OUT, STYLES, Sprite, load
from tools.nano.talk.kinds import COLOURS, NAMES

CANVASES = ((224, 224), (256, 192), (192, 256), (288, 192), (192, 288), (256, 224))  # a token has 32 pixels a side
TRAINED_STYLES = ("drawn", *(style for style in STYLES if style != KEPT_OUT))
FONTS, SIGN_COLOURS = 16, 24
SIDES = {1: (0.24, 0.62), 2: (0.22, 0.52), 3: (0.2, 0.44)}  # of a thing, by how many there are


@dataclass(frozen=True)
class Thing:
    """One object. colour: None where no name fits it. painted: its picture is drawn in shades of its colour."""

    kind: str
    colour: str | None
    box: Box
    style: str
    painted: bool = False
    flipped: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything in a picture; things are drawn in order, signs last. `look` seeds background, light and noise."""

    canvas: tuple[int, int]
    things: tuple[Thing, ...]
    sign: Sign | None
    background: str
    look: int
    more_signs: tuple[Sign, ...] = ()  # only in pictures that teach letters

    @property
    def signs(self) -> tuple[Sign, ...]:
        """All boards with text."""
        return ((self.sign,) if self.sign else ()) + self.more_signs


@dataclass(frozen=True)
class Change:
    """Change from one picture to the next: what = none, gone, added, colour; before/after name the thing."""

    what: str
    before: Thing | None = None
    after: Thing | None = None


class Stock:
    """Stock of scenes: the sprites of some styles."""

    def __init__(self, sprites: Path, styles: tuple[str, ...] = TRAINED_STYLES):
        self.sprites = load(sprites)
        self.styles = styles
        self.choices = {
            kind: [s for s in styles if (kind, s) in self.sprites or (s == "drawn" and kind in DRAWN)] for kind in NAMES
        }

    def sprite(self, thing: Thing) -> Sprite | None:
        """The picture of a thing; None for one that is drawn."""
        return None if thing.style == "drawn" else self.sprites[thing.kind, thing.style]

    def aspect(self, kind: str, style: str) -> float:
        """Width over height."""
        return ASPECT.get(kind, 1.0) if style == "drawn" else self.sprites[kind, style].aspect

    def thing(
        self,
        rng: random.Random,
        canvas: tuple[int, int],
        taken: list[Box],
        crowd: int,
        kind: str = "",
        colour: str = "",
    ) -> Thing | None:
        """A thing with a free place, or None when the picture is full. kind, colour: wished for."""
        kind = kind or rng.choice(NAMES)
        style = rng.choice(self.choices[kind] or self.styles)
        if style not in self.choices[kind]:
            return None
        aspect = self.aspect(kind, style)
        allowed = 0.3 if rng.random() < 0.25 else 0.04
        box = place(lambda: _box(rng, aspect, canvas, SIDES.get(crowd, (0.18, 0.36))), taken, allowed)
        if box is None:
            return None
        flipped = rng.random() < 0.5
        if style == "drawn":
            return Thing(
                kind, colour if colour in DRAWN_COLOURS else rng.choice(DRAWN_COLOURS), box, style, True, flipped
            )
        own = self.sprites[kind, style].colour
        if (colour and colour != own) or (not colour and rng.random() < 0.4):
            return Thing(kind, colour or rng.choice(COLOURS), box, style, True, flipped)
        return Thing(kind, own, box, style, False, flipped)


def _box(rng: random.Random, aspect: float, canvas: tuple[int, int], scale: tuple[float, float]) -> Box:
    side = rng.uniform(*scale) * min(canvas)
    root = min(max(aspect, 0.3), 3.3) ** 0.5
    width, height = min(side * root / canvas[0], 0.96), min(side / root / canvas[1], 0.96)
    left, top = rng.uniform(0.01, 0.99 - width), rng.uniform(0.01, 0.99 - height)
    return (left, top, left + width, top + height)


def sample_sign(rng: random.Random, canvas: tuple[int, int], taken: list[Box], text: str = "") -> Sign | None:
    """A sign large enough that its letters survive the model's resolution; one of many fonts and colours."""
    text = text or sample_text(rng)
    tilt = rng.choice((0.0, 0.0, rng.uniform(-8, 8)))
    height = rng.uniform(0.15, 0.26) * min(canvas)
    width = min(height * (0.62 * max(len(text), 2) + 0.55), 0.86 * canvas[0])
    extra = abs(tilt) / 57
    w, h = (width + extra * height) / canvas[0], (height + extra * width) / canvas[1]

    def make() -> Box:
        left, top = rng.uniform(0.01, 0.99 - w), rng.uniform(0.01, 0.99 - h)
        return (left, top, left + w, top + h)

    box = place(make, taken, 0.0)
    if box is None:
        return None
    quad = tilted_quad(box, (width, height), tilt, canvas)
    return Sign(text, box, quad, tilt, rng.randrange(SIGN_COLOURS), rng.randrange(FONTS))


def sample_scene(
    stock: Stock,
    seed: int,
    things: tuple[int, int] = (1, 6),
    sign_share: float = 0.45,
    canvas: tuple[int, int] | None = None,
) -> Scene:
    """The scene of a seed: between things[0] and things[1] objects and, in part of the scenes, a sign."""
    rng = random.Random(f"talk-{seed}")
    canvas = canvas or rng.choice(CANVASES)
    count = rng.randint(*things)
    taken: list[Box] = []
    sign = sample_sign(rng, canvas, taken) if rng.random() < sign_share else None
    if sign:
        taken.append(sign.box)
        count = min(count, 4)
    found: list[Thing] = []
    for _ in range(count):
        kind = rng.choice(found).kind if found and rng.random() < 0.3 else ""  # repeats make counting worth asking
        colour = rng.choice(found).colour if found and not kind and rng.random() < 0.25 else ""
        thing = stock.thing(rng, canvas, taken, count + bool(sign), kind, colour or "")
        if thing:
            found.append(thing)
            taken.append(thing.box)
    return Scene(canvas, tuple(found), sign, rng.choice(BACKGROUNDS), rng.randrange(1 << 30))


def sample_signs(seed: int, canvas: tuple[int, int] = CANVASES[0]) -> Scene:
    """A picture full of signs with random letters: much to read at once, for the picture side's training."""
    rng = random.Random(f"talk-signs-{seed}")
    signs: list[Sign] = []
    for _ in range(9):
        letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(rng.randint(1, 6)))
        sign = sample_sign(rng, canvas, [s.box for s in signs], letters if rng.random() < 0.6 else "")
        if sign:
            signs.append(sign)
    return Scene(canvas, (), None, rng.choice(BACKGROUNDS), rng.randrange(1 << 30), tuple(signs))


def change_scene(stock: Stock, scene: Scene, seed: int) -> tuple[Scene, Change]:
    """The same place a moment later, in another light: nothing changed, or exactly one thing did."""
    rng = random.Random(f"talk-change-{seed}")
    scene = replace(scene, look=rng.randrange(1 << 30))
    what = rng.choice(("none", "gone", "added", "colour", "colour"))
    things = list(scene.things)
    painted = [i for i, thing in enumerate(things) if thing.painted]
    if what == "gone" and len(things) > 1:
        gone = things.pop(rng.randrange(len(things)))
        return replace(scene, things=tuple(things)), Change("gone", before=gone)
    if what == "added":
        taken = [t.box for t in things] + [sign.box for sign in scene.signs]
        new = stock.thing(rng, scene.canvas, taken, len(things) + 2)
        if new:
            return replace(scene, things=(*things, new)), Change("added", after=new)
    if what == "colour" and painted:
        index = rng.choice(painted)
        old = things[index]
        palette = DRAWN_COLOURS if old.style == "drawn" else COLOURS
        things[index] = replace(old, colour=rng.choice([c for c in palette if c != old.colour]))
        return replace(scene, things=tuple(things)), Change("colour", old, things[index])
    return scene, Change("none")
