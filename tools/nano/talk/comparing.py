"""Makers of turns that compare things of one picture, and captions, which name them in their order."""

from __future__ import annotations

from tools.nano.scenes import Box
from tools.nano.signs import letter_boxes
from tools.nano.talk.asking import simple
from tools.nano.talk.questions import Asker
from tools.nano.talk.scenes import Scene, Thing
from tools.nano.talk.turns import Part, Said, Turn, certain, matches, names_of, one, sentence, the


def two(ask: Asker, scene: Scene) -> tuple[Thing, Thing, str, str] | None:
    """Two things that can be told apart, and their descriptions."""
    clear = [t for t in scene.things if len(matches(scene, names_of(t))) == 1 and certain(scene, names_of(t))]
    if len(clear) < 2:
        return None
    pair = ask.rng.sample(clear, 2)
    described = []
    for thing in pair:
        alone = len(matches(scene, (None, thing.kind))) == 1 and ask.rng.random() < 0.5
        described.append(the((None, thing.kind) if alone else names_of(thing), ask.language))
    return pair[0], pair[1], described[0], described[1]


def side(ask: Asker, scene: Scene) -> Turn | None:
    """A question for the side on which one thing stands of another."""
    found = two(ask, scene)
    if not found:
        return None
    first, second, a, b = found
    gap = (first.box[0] + first.box[2] - second.box[0] - second.box[2]) / 2
    if abs(gap) < 0.12:
        return None
    focus = (first.box, second.box)
    if ask.rng.random() < 0.4:
        answer = {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}[ask.language][gap < 0]
        return simple(ask, "left_of", answer, focus, a=a, b=b)
    answer = {"en": ("To the left.", "To the right."), "zh": ("左边。", "右边。")}[ask.language][gap > 0]
    return simple(ask, "side", answer, focus, a=a, b=b)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def bigger(ask: Asker, scene: Scene) -> Turn | None:
    """Ask which of two things takes more of the picture."""
    found = two(ask, scene)
    if not found:
        return None
    first, second, a, b = found
    ratio = _area(first.box) / _area(second.box)
    if 0.6 < ratio < 1 / 0.6:
        return None
    answer = sentence(a if ratio > 1 else b, ask.language)
    return simple(ask, "bigger", answer, (first.box, second.box), a=a, b=b)


def end(ask: Asker, scene: Scene) -> Turn | None:
    """The thing furthest left or right."""
    if len(scene.things) < 2 or scene.sign:
        return None
    right = ask.rng.random() < 0.5
    order = sorted(scene.things, key=lambda t: (t.box[0] + t.box[2]) * (-1 if right else 1))
    if abs(order[0].box[0] + order[0].box[2] - order[1].box[0] - order[1].box[2]) < 0.2:
        return None
    thing = order[0]
    answer = sentence(one(names_of(thing), ask.language), ask.language)
    return simple(ask, "end_right" if right else "end", answer, (thing.box,), thing)


def caption_parts(scene: Scene, language: str, picture: int = 0) -> tuple[Part, ...]:
    """All things from left to right, then the sign: a sentence in parts, each about its own thing."""
    parts: list[tuple[str, Said]] = []
    for thing in sorted(scene.things, key=lambda t: t.box[0] + t.box[2]):
        parts.append((one(names_of(thing), language), Said("", (thing.box,), picture=picture)))
    if scene.sign:
        board = Said("", (scene.sign.box,), picture=picture)
        letters = tuple(letter_boxes(scene.sign, scene.canvas))
        parts.append(("写着" if language == "zh" else "a sign that says ", board))
        parts.append((scene.sign.text, Said("", letters=letters, picture=picture)))
        if language == "zh":
            parts.append(("的牌子", board))
    said: list[Part] = []
    starts = len(scene.things) + bool(scene.sign)
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    for number, (text, about) in enumerate(parts):
        joint = "" if number == 0 or number >= starts else last if number == starts - 1 else comma
        shown = text[0].upper() + text[1:] if number == 0 and language == "en" else text
        said.append(Said(joint + shown, about.focus, about.letters, picture))
    return (*said, Said("。" if language == "zh" else "."))


def caption(ask: Asker, scene: Scene) -> Turn | None:
    """A sentence that names everything."""
    if not scene.things and not scene.sign:
        return None
    parts = caption_parts(scene, ask.language)
    text = "".join(part.text for part in parts if isinstance(part, Said))
    return Turn("caption", ask("caption"), parts, truth={"text": text})
