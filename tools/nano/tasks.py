"""Questions about scenes with their answers, in Qwen-VL's own formats, English and Chinese.

A dialogue is a list of turns about the same pictures; most have one turn. `truth` holds what an answer is scored by.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.nano.phrases import (
    COLOUR_ZH,
    KIND_ZH,
    Names,
    article,
    box_markup,
    caption,
    corners,
    grounded,
    left_to_right,
    nothing_there,
    phrase,
    plural,
    sentence,
    some,
    the,
)
from tools.nano.scenes import COLOURS, KINDS, Box, Scene, Thing
from tools.nano.signs import letter_boxes


@dataclass(frozen=True)
class Turn:
    """One question and its answer, both with markup."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Turns about pictures. The last turn is the one that is scored, against `truth`.

    What an answer speaks of helps in training: `focus` holds the places of its boxes in their order (or of the things
    that its words are about), `letters` those of the letters that it spells, in picture `picture` (from 0).
    """

    task: str
    language: str
    turns: tuple[Turn, ...]
    truth: dict[str, Any] = field(default_factory=dict)
    focus: tuple[Box, ...] = ()
    letters: tuple[Box, ...] = ()
    picture: int = 0


Maker = Callable[[random.Random, Scene, str], Dialogue | None]


def pick(rng: random.Random, language: str, english: tuple[str, ...], chinese: tuple[str, ...], **words: str) -> str:
    """One of the wordings of a language, filled in."""
    return rng.choice(chinese if language == "zh" else english).format(**words)


def matches(scene: Scene, names: Names) -> list[Thing]:
    """The things that a colour and a kind (or None) describe."""
    colour, kind = names
    return [t for t in scene.things if colour in (None, t.colour) and kind in (None, t.kind)]


def unique_names(rng: random.Random, scene: Scene) -> tuple[Names, Thing] | None:
    """A thing and a description that fits no other one; by kind alone where that is enough, sometimes."""
    choices = []
    for thing in scene.things:
        for names in ((thing.colour, thing.kind), (thing.colour, thing.kind), (None, thing.kind)):
            if len(matches(scene, names)) == 1:
                choices.append((names, thing))
    return rng.choice(choices) if choices else None


def missing_names(rng: random.Random, scene: Scene) -> Names:
    """A description that fits nothing; in half of the cases colour and kind are both there, on different things."""
    colours = list({t.colour for t in scene.things}) if rng.random() < 0.6 else list(COLOURS)
    kinds = list({t.kind for t in scene.things}) if rng.random() < 0.6 else list(KINDS)
    options = [(c, k) for c in colours or COLOURS for k in kinds or KINDS if not matches(scene, (c, k))]
    return rng.choice(options or [(c, k) for c in COLOURS for k in KINDS if not matches(scene, (c, k))])


WHERE_EN = ("Where is {it}?", "Find {it}.", "Point to {it}.")
WHERE_ZH = ("{it}在哪里?", "找出{it}。", "请指出{it}。")


def ground(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """Phrase -> box."""
    if scene.sign and rng.random() < 0.2:
        label, box = ("牌子" if language == "zh" else "the sign"), scene.sign.box
    else:
        found = unique_names(rng, scene)
        if not found:
            return None
        label, box = the(found[0], language), found[1].box
    question = pick(rng, language, WHERE_EN, WHERE_ZH, it=label)
    return Dialogue("ground", language, (Turn(question, grounded(label, [box])),), {"boxes": [box]}, (box,))


def ground_all(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """Phrase -> every box."""
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    names: Names = (None, thing.kind) if rng.random() < 0.5 else (thing.colour, None)
    boxes = sorted(t.box for t in matches(scene, names))
    label = plural(names, language)
    question = pick(
        rng, language, ("Find all {it}.", "Where are all {it}?"), ("找出所有{it}。", "所有{it}在哪里?"), it=label
    )
    return Dialogue("ground_all", language, (Turn(question, grounded(label, boxes)),), {"boxes": boxes}, tuple(boxes))


def absent(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """Asked to ground or read what is not there."""
    if not scene.sign and rng.random() < 0.3:
        what = "牌子" if language == "zh" else "sign"
        question = pick(rng, language, READ_EN, READ_ZH)
    else:
        names = missing_names(rng, scene)
        what = phrase(names, language)
        question = pick(rng, language, WHERE_EN, WHERE_ZH, it=the(names, language))
    answer = nothing_there(what, language)
    return Dialogue("absent", language, (Turn(question, answer),), {"text": answer})


def refer(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """Box -> phrase."""
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    label = "这个" if language == "zh" else "this"
    question = pick(
        rng, language, ("What is {it}?",), ("{it}是什么?",), it=f"<ref>{label}</ref>{box_markup(thing.box)}"
    )
    answer = some(thing, language) + "。" if language == "zh" else sentence(some(thing, language)) + "."
    return Dialogue("refer", language, (Turn(question, answer),), {"text": answer}, (thing.box,))


def colour(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A question for the colour of the only thing of a kind."""
    only = [t for t in scene.things if len(matches(scene, (None, t.kind))) == 1]
    if not only:
        return None
    thing = rng.choice(only)
    it = the((None, thing.kind), language)
    question = pick(rng, language, ("What colour is {it}?", "Which colour is {it}?"), ("{it}是什么颜色的?",), it=it)
    answer = f"{COLOUR_ZH[thing.colour]}。" if language == "zh" else f"{sentence(thing.colour)}."
    return Dialogue("colour", language, (Turn(question, answer),), {"text": answer, "thing": thing}, (thing.box,))


def kind(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A question for the kind of the only thing of a colour."""
    only = [t for t in scene.things if len(matches(scene, (t.colour, None))) == 1]
    if not only:
        return None
    thing = rng.choice(only)
    it = the((thing.colour, None), language)
    question = pick(rng, language, ("What is {it}?", "What kind of thing is {it}?"), ("{it}是什么?",), it=it)
    answer = f"{KIND_ZH[thing.kind]}。" if language == "zh" else f"{sentence(article(thing.kind))}."
    return Dialogue("kind", language, (Turn(question, answer),), {"text": answer, "thing": thing}, (thing.box,))


def count(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A question for the number of things, or of those of a kind or colour."""
    names: Names = (None, None)
    if scene.things and rng.random() < 0.6:
        thing = rng.choice(scene.things)
        names = (None, thing.kind) if rng.random() < 0.5 else (thing.colour, None)
    what = "物体" if names == (None, None) and language == "zh" else plural(names, language)
    question = pick(rng, language, ("How many {it} are there?",), ("有几个{it}?", "图中有几个{it}?"), it=what)
    counted = matches(scene, names)
    answer = str(len(counted))
    return Dialogue("count", language, (Turn(question, answer),), {"text": answer}, tuple(t.box for t in counted))


def yes_no(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A question whether a coloured thing is there."""
    holds = bool(scene.things) and rng.random() < 0.5
    thing = rng.choice(scene.things) if holds else None
    names = (thing.colour, thing.kind) if thing else missing_names(rng, scene)
    one = phrase(names, language)
    question = pick(
        rng,
        language,
        ("Is there {it}?", "Do you see {it}?"),
        ("有{it}吗?", "图中有{it}吗?"),
        it=one if language == "zh" else article(one),
    )
    answer = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}[language][holds]
    focus = (thing.box,) if thing else ()
    return Dialogue("yes_no", language, (Turn(question, answer),), {"text": answer, "thing": thing}, focus)


def side(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A question for the side on which one thing stands of another."""
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    names = [(t.colour, t.kind) for t in (first, second)]
    if any(len(matches(scene, n)) > 1 for n in names):
        return None
    gap = (first.box[0] + first.box[2] - second.box[0] - second.box[2]) / 2
    if abs(gap) < 0.12:
        return None
    a, b = (the(n, language) for n in names)
    question = pick(
        rng, language, ("Is {a} to the left or to the right of {b}?",), ("{a}在{b}的左边还是右边?",), a=a, b=b
    )
    answer = {"en": ("To the left.", "To the right."), "zh": ("左边。", "右边。")}[language][gap > 0]
    return Dialogue("side", language, (Turn(question, answer),), {"text": answer})


READ_EN = ("What does the sign say?", "Read the sign.")
READ_ZH = ("牌子上写着什么?", "读出牌子上的字。")


def read(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """The text of the sign."""
    if not scene.sign:
        return None
    turn = Turn(pick(rng, language, READ_EN, READ_ZH), scene.sign.text)
    letters = tuple(letter_boxes(scene.sign, scene.canvas))
    return Dialogue("read", language, (turn,), {"text": scene.sign.text}, letters=letters)


def ocr(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """The text with the sign's corners."""
    if not scene.sign:
        return None
    answer = f"<ref>{scene.sign.text}</ref><quad>{corners(list(scene.sign.quad))}</quad>"
    question = "带坐标的文字识别:" if language == "zh" else "OCR with grounding:"
    truth = {"text": scene.sign.text, "boxes": [scene.sign.box]}
    letters = tuple(letter_boxes(scene.sign, scene.canvas))
    return Dialogue("ocr", language, (Turn(question, answer),), truth, (scene.sign.box,), letters)


def describe(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A caption."""
    if not scene.things and not scene.sign:
        return None
    question = pick(
        rng, language, ("Describe the picture.", "What is in the picture?"), ("描述这张图片。", "图中有什么?")
    )
    answer = caption(scene, language)
    boxes = [thing.box for thing in left_to_right(scene)] + ([scene.sign.box] if scene.sign else [])
    return Dialogue("caption", language, (Turn(question, answer),), {"text": answer}, tuple(boxes))


def follow_up(rng: random.Random, scene: Scene, language: str) -> Dialogue | None:
    """A second question whose "it" is in the first."""
    first = rng.choice((colour, kind, yes_no))(rng, scene, language)
    thing = first.truth.get("thing") if first else None
    if not first or not thing or len(matches(scene, (thing.colour, thing.kind))) > 1:
        return None
    if first.task == "yes_no" and rng.random() < 0.4:
        return None
    label = the((thing.colour, thing.kind), language)
    turn = Turn(pick(rng, language, ("Where is it?",), ("它在哪里?",)), grounded(label, [thing.box]))
    return Dialogue("follow_up", language, (*first.turns, turn), {"boxes": [thing.box]}, (thing.box,))


SINGLE: dict[str, tuple[Maker, float]] = {
    "ground": (ground, 3.0),
    "ground_all": (ground_all, 1.2),
    "absent": (absent, 0.8),
    "refer": (refer, 1.5),
    "colour": (colour, 1.0),
    "kind": (kind, 1.0),
    "count": (count, 5.0),
    "yes_no": (yes_no, 1.2),
    "side": (side, 1.5),
    "read": (read, 3.0),
    "ocr": (ocr, 1.0),
    "caption": (describe, 1.2),
    "follow_up": (follow_up, 0.7),
}


def single_dialogues(rng: random.Random, scene: Scene, number: int, tasks: list[str] | None = None) -> list[Dialogue]:
    """`number` dialogues about one picture, tasks drawn by weight; fewer when the scene allows fewer."""
    names = tasks or list(SINGLE)
    weights = [SINGLE[name][1] for name in names]
    made: list[Dialogue] = []
    for _ in range(number * 4):
        maker = SINGLE[rng.choices(names, weights)[0]][0]
        dialogue = maker(rng, scene, rng.choice(("en", "en", "zh", "zh")))
        if dialogue and all(dialogue.turns != other.turns for other in made):
            made.append(dialogue)
        if len(made) == number:
            break
    return made
