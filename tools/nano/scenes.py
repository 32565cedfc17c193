"""Scenes: what is in a picture, sampled from a seed, independent of how it is drawn (see drawing.py).

All coordinates are fractions of the picture's sides, 0..1, left/top/right/bottom.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

KINDS = ("mug", "ball", "star", "house", "tree", "car", "fish", "bottle", "umbrella", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
ASPECT = {"tree": 0.72, "car": 1.75, "fish": 1.7, "bottle": 0.45, "mug": 1.1, "umbrella": 1.0, "heart": 1.05}
BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "photo", "room")
CANVASES = ((224, 224), (224, 224), (256, 192), (192, 256))
WORDS = (
    "EXIT STOP OPEN CLOSED CAFE HOTEL BANK TAXI BUS PARK ZOO SHOP SALE FREE PUSH PULL "
    "SLOW FAST NORTH SOUTH EAST WEST UP DOWN LEFT RIGHT HOME LAB DOCK GATE ROOM FIRE "
    "WATER FOOD MILK TEA RICE FRUIT BOOKS MUSIC POLICE POST SCHOOL PLANT ROBOT LIFT DANGER KEEP "
    "OUT IN YES NO HOT COLD DRY WET NEW OLD RED BLUE GREEN"
).split()

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """One object."""

    kind: str
    colour: str
    box: Box
    flipped: bool = False


@dataclass(frozen=True)
class Sign:
    """A board with a word or a number; `quad` are its corners clockwise from the top left one, `box` is around them."""

    text: str
    box: Box
    quad: tuple[Point, Point, Point, Point]
    tilt: float  # degrees, counter-clockwise
    style: int
    font: int


@dataclass(frozen=True)
class Scene:
    """Everything in a picture; things are drawn in order, the sign last. `look` seeds background, light and noise."""

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


def overlap(a: Box, b: Box) -> float:
    """Shared area as a part of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def place(make: Callable[[], Box], taken: list[Box], allowed: float, tries: int = 40) -> Box | None:
    """The first of `tries` boxes that covers none of `taken` by more than `allowed`."""
    for _ in range(tries):
        box = make()
        if all(overlap(box, other) <= allowed for other in taken):
            return box
    return None


def _thing_box(rng: random.Random, kind: str, canvas: tuple[int, int], scale: tuple[float, float]) -> Box:
    shorter = min(canvas)
    side = rng.uniform(*scale) * shorter
    root = ASPECT.get(kind, 1.0) ** 0.5
    width, height = side * root / canvas[0], side / root / canvas[1]
    left, top = rng.uniform(0.01, 0.99 - width), rng.uniform(0.01, 0.99 - height)
    return (left, top, left + width, top + height)


def sample_thing(rng: random.Random, canvas: tuple[int, int], taken: list[Box], crowd: int) -> Thing | None:
    """A thing with a free place, or None when the picture is full. A crowd is drawn smaller."""
    kind = rng.choice(KINDS)
    scale = (0.2, 0.5) if crowd <= 2 else (0.18, 0.4)
    allowed = 0.25 if rng.random() < 0.2 else 0.04
    box = place(lambda: _thing_box(rng, kind, canvas, scale), taken, allowed)
    return None if box is None else Thing(kind, rng.choice(COLOURS), box, rng.random() < 0.5)


def sample_text(rng: random.Random) -> str:
    """A word of the list or a number of one to three digits."""
    return rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randrange(10 ** rng.choice((1, 2, 2, 3))))


def sample_sign(rng: random.Random, canvas: tuple[int, int], taken: list[Box], text: str = "") -> Sign | None:
    """A sign large enough that its letters survive the model's resolution."""
    text = text or sample_text(rng)
    tilt = rng.choice((0.0, 0.0, rng.uniform(-8, 8)))
    height = rng.uniform(0.17, 0.25) * min(canvas)
    width = min(height * (0.62 * max(len(text), 2) + 0.55), 0.86 * canvas[0])

    def make() -> Box:
        w, h = (width + abs(tilt) / 57 * height) / canvas[0], (height + abs(tilt) / 57 * width) / canvas[1]
        left, top = rng.uniform(0.01, 0.99 - w), rng.uniform(0.01, 0.99 - h)
        return (left, top, left + w, top + h)

    box = place(make, taken, 0.0)
    if box is None:
        return None
    return Sign(text, box, tilted_quad(box, (width, height), tilt, canvas), tilt, rng.randrange(6), rng.randrange(6))


def tilted_quad(
    box: Box, size: tuple[float, float], tilt: float, canvas: tuple[int, int]
) -> tuple[Point, Point, Point, Point]:
    """Corners of a board of `size` pixels in the middle of `box`, turned by `tilt` degrees (small angles)."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    slope = tilt / 57.2958
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = []
    for sx, sy in corners:
        x, y = sx * size[0] / 2, sy * size[1] / 2
        points.append((cx + (x + slope * y) / canvas[0], cy + (y - slope * x) / canvas[1]))
    return (points[0], points[1], points[2], points[3])


def sample_scene(seed: int, things: tuple[int, int] = (1, 5), sign_share: float = 0.45) -> Scene:
    """The scene of a seed: between things[0] and things[1] objects and, in part of the scenes, a sign."""
    rng = random.Random(f"scene-{seed}")
    canvas = rng.choice(CANVASES)
    count = rng.randint(*things)
    taken: list[Box] = []
    sign = sample_sign(rng, canvas, taken) if rng.random() < sign_share else None
    if sign:
        taken.append(sign.box)
        count = min(count, 3)
    found: list[Thing] = []
    for _ in range(count):
        thing = sample_thing(rng, canvas, taken, count + 2 * bool(sign))
        if thing and found and rng.random() < 0.35:  # repeats make counting and "the red one" worth asking
            other = rng.choice(found)
            thing = replace(thing, colour=other.colour)
        if thing:
            found.append(thing)
            taken.append(thing.box)
    return Scene(canvas, tuple(found), sign, rng.choice(BACKGROUNDS), rng.randrange(1 << 30))


def sample_signs(seed: int) -> Scene:
    """A picture full of signs with random letters: much to read at once, for the picture side's training."""
    rng = random.Random(f"signs-{seed}")
    canvas = rng.choice(CANVASES)
    taken: list[Box] = []
    signs: list[Sign] = []
    for _ in range(8):
        letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(rng.randint(1, 6)))
        sign = sample_sign(rng, canvas, taken, letters if rng.random() < 0.6 else "")
        if sign:
            signs.append(sign)
            taken.append(sign.box)
    return Scene(canvas, (), None, rng.choice(BACKGROUNDS), rng.randrange(1 << 30), tuple(signs))


@dataclass(frozen=True)
class Change:
    """Change from one picture to the next: what = none, gone, added, colour, text; before/after name the thing."""

    what: str
    before: Thing | None = None
    after: Thing | None = None
    text: str = ""


def change_scene(scene: Scene, seed: int) -> tuple[Scene, Change]:
    """The same place a moment later, in another light: nothing changed, or exactly one thing did."""
    rng = random.Random(f"change-{seed}")
    scene = replace(scene, look=rng.randrange(1 << 30))
    what = rng.choice(("none", "gone", "added", "colour", "colour", "text" if scene.sign else "none"))
    things = list(scene.things)
    if what == "gone" and len(things) > 1:
        gone = things.pop(rng.randrange(len(things)))
        return replace(scene, things=tuple(things)), Change("gone", before=gone)
    if what == "added":
        taken = [t.box for t in things] + ([scene.sign.box] if scene.sign else [])
        new = sample_thing(rng, scene.canvas, taken, len(things) + 2)
        if new:
            return replace(scene, things=(*things, new)), Change("added", after=new)
    if what == "colour" and things:
        index = rng.randrange(len(things))
        old = things[index]
        things[index] = replace(old, colour=rng.choice([c for c in COLOURS if c != old.colour]))
        return replace(scene, things=tuple(things)), Change("colour", old, things[index])
    return scene, Change("none")
