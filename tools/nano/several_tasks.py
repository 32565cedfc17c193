"""Questions about several pictures: what changed, whether they are the same, which one has a thing, where it is."""

from __future__ import annotations

import random

from tools.nano.phrases import article, changed, grounded, phrase, the
from tools.nano.scenes import Box, Change, Scene
from tools.nano.tasks import Dialogue, Turn, matches, pick, unique_names


def place_of(change: Change) -> tuple[Box, ...]:
    """Box of the thing that changed, () if none did."""
    thing = change.before or change.after
    return (thing.box,) if thing else ()


def same(rng: random.Random, change: Change, language: str) -> Dialogue:
    """A question whether two pictures show the same things."""
    holds = change.what == "none"
    question = pick(rng, language, ("Do the two pictures show the same things?",), ("两张图片里的东西一样吗?",))
    answer = {"en": ("No.", "Yes."), "zh": ("不一样。", "一样。")}[language][holds]
    return Dialogue("same", language, (Turn(question, answer),), {"text": answer}, place_of(change), picture=1)


def what_changed(rng: random.Random, change: Change, language: str) -> Dialogue:
    """A question for the change in the second picture."""
    answer = changed(change, language)
    question = pick(rng, language, ("What changed?", "What is different?"), ("有什么变化?", "有什么不同?"))
    return Dialogue("changed", language, (Turn(question, answer),), {"text": answer}, place_of(change), picture=1)


def which(rng: random.Random, scenes: list[Scene], language: str) -> Dialogue | None:
    """A question for the picture that has a thing."""
    options = []
    for thing in (t for s in scenes for t in s.things):
        names = (thing.colour, thing.kind)
        having = [i for i, s in enumerate(scenes) if matches(s, names)]
        if len(having) == 1:
            options.append((names, having[0] + 1, thing.box))
    if not options:
        return None
    names, number, box = rng.choice(options)
    one = phrase(names, language)
    it = one if language == "zh" else article(one)
    question = pick(rng, language, ("Which picture has {it}?",), ("哪张图片里有{it}?",), it=it)
    answer = f"图片{number}。" if language == "zh" else f"Picture {number}."
    return Dialogue("which", language, (Turn(question, answer),), {"text": answer}, (box,), picture=number - 1)


def ground_in(rng: random.Random, scenes: list[Scene], language: str) -> Dialogue | None:
    """Phrase -> box in the picture that is named."""
    number = rng.randrange(len(scenes)) + 1
    found = unique_names(rng, scenes[number - 1])
    if not found:
        return None
    label = the(found[0], language)
    question = pick(
        rng, language, ("Where is {it} in picture {n}?",), ("图片{n}里的{it}在哪里?",), it=label, n=str(number)
    )
    turn = Turn(question, grounded(label, [found[1].box]))
    box = found[1].box
    return Dialogue("ground_in", language, (turn,), {"boxes": [box]}, (box,), picture=number - 1)


def several_dialogues(rng: random.Random, scenes: list[Scene], change: Change | None, number: int) -> list[Dialogue]:
    """`number` dialogues about two or three pictures; `change` when the second is a changed copy of the first."""
    made: list[Dialogue] = []
    for _ in range(number * 4):
        language = rng.choice(("en", "zh"))
        roll = rng.random()
        dialogue: Dialogue | None
        if change and roll < 0.4:
            dialogue = what_changed(rng, change, language)
        elif change and roll < 0.6:
            dialogue = same(rng, change, language)
        elif roll < 0.8:
            dialogue = which(rng, scenes, language)
        else:
            dialogue = ground_in(rng, scenes, language)
        if dialogue and all(dialogue.turns != other.turns for other in made):
            made.append(dialogue)
        if len(made) == number:
            break
    return made
