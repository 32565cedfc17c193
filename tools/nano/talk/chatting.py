"""Conversations: turns about one picture in any order, follow-ups, small talk, and talk without a picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.nano.talk import asking, comparing
from tools.nano.talk.asking import Maker, colour_answer, simple, unique
from tools.nano.talk.questions import Asker
from tools.nano.talk.scenes import Change, Scene, Thing
from tools.nano.talk.several import ask_several
from tools.nano.talk.turns import Names, Places, Turn, certain, matches, names_of, phrase, the

SINGLE: dict[str, tuple[Maker, float]] = {
    "where": (asking.where, 2.6),
    "where_all": (asking.where_all, 1.8),
    "point": (asking.point, 0.8),
    "absent": (asking.absent, 0.9),
    "colour": (asking.colour, 1.2),
    "kind": (asking.kind, 1.2),
    "count": (asking.count, 3.4),
    "exists": (asking.exists, 1.5),
    "side": (comparing.side, 1.5),
    "bigger": (comparing.bigger, 1.6),
    "end": (comparing.end, 1.2),
    "read": (asking.read, 2.2),
    "spot": (asking.spot, 0.7),
    "caption": (comparing.caption, 3.0),
    "unknown": (asking.unknown, 0.5),
}
SMALL_TALK = {
    "hello": ("Hello! Show me a picture and ask me about it.", "你好!给我看一张图片,问我问题吧。"),
    "who": (
        "I am a small model that sees. I can describe a picture, find and count things, tell colours and read signs.",
        "我是一个会看图的小模型。我可以描述图片、找东西、数东西、说颜色、读牌子。",
    ),
    "thanks": ("You are welcome.", "不客气。"),
    "bye": ("Goodbye!", "再见!"),
    "fine": ("I am fine, thank you.", "我很好,谢谢。"),
}
NO_PICTURE = ("I see no picture. Please show me one.", "我没有看到图片。请给我看一张。")
LENGTHS = ((1, 0.42), (2, 0.2), (3, 0.14), (4, 0.1), (6, 0.08), (8, 0.04), (10, 0.02))  # turns, and how often


@dataclass(frozen=True)
class Conversation:
    """Turns about the same pictures; the pictures come in the first turn, before the question or after it."""

    turns: tuple[Turn, ...]
    pictures: int
    question_first: bool = False


def small_talk(ask: Asker) -> Turn:
    """A greeting or a question about the model itself."""
    task = ask.rng.choice(list(SMALL_TALK))
    return simple(ask, task, SMALL_TALK[task][ask.language == "zh"])


def without_picture(ask: Asker) -> Turn:
    """A question about a picture where there is none."""
    task = ask.rng.choice(("caption", "colour", "count", "where", "exists", "read", "kind", "point"))
    names: Names = (ask.rng.choice(("red", "blue", None)), ask.rng.choice(("mug", "car", "dog", "tree", "ball")))
    it = phrase(names, ask.language) if task == "count" else the(names, ask.language)
    return simple(ask, task, NO_PICTURE[ask.language == "zh"], it=it)


def follow_up(ask: Asker, scene: Scene, thing: Thing) -> Turn | None:
    """A question whose "it" is in the turn before."""
    if len(matches(scene, names_of(thing))) > 1 or not certain(scene, names_of(thing)):
        return None
    if thing.colour and ask.rng.random() < 0.4:
        return simple(ask, "colour_it", colour_answer(thing, ask.language), (thing.box,), thing)
    answer = Places(phrase(names_of(thing), ask.language), (thing.box,))
    return Turn("where_it", ask("where_it"), (answer,), truth={"boxes": (thing.box,)}, thing=thing)


def what_about(ask: Asker, scene: Scene, before: Turn) -> Turn | None:
    """The last question, for another thing."""
    found = unique(ask, scene)
    if not found or before.task not in ("colour", "where"):
        return None
    names, thing = found
    if before.task == "colour":
        if names[0] or not thing.colour:
            return None
        return simple(
            ask, "what_about", colour_answer(thing, ask.language), (thing.box,), thing, it=the(names, ask.language)
        )
    it = the(names, ask.language)
    answer = Places(phrase(names, ask.language), (thing.box,))
    return Turn("what_about", ask("what_about", it=it), (answer,), (it,), {"boxes": (thing.box,)}, thing)


def next_turn(ask: Asker, scene: Scene, before: Turn | None, tasks: Sequence[str]) -> Turn | None:
    """Any turn about one picture that may follow `before`."""
    roll = ask.rng.random()
    if before and before.thing and roll < 0.25:
        return follow_up(ask, scene, before.thing)
    if before and roll < 0.32:
        return what_about(ask, scene, before)
    if roll > 0.97:
        return small_talk(ask)
    name = ask.rng.choices(tasks, [SINGLE[task][1] for task in tasks])[0]
    return SINGLE[name][0](ask, scene)


def converse(
    rng: random.Random,
    scenes: Sequence[Scene],
    change: Change | None = None,
    *,
    length: int | None = None,
    question_first: bool = False,
    tasks: Sequence[str] = tuple(SINGLE),
) -> Conversation | None:
    """A conversation about `scenes` (none: small talk alone); None where they allow none."""
    ask = Asker(rng, rng.choice(("en", "zh")), varied=True)
    wanted = length or rng.choices([n for n, _ in LENGTHS], [share for _, share in LENGTHS])[0]
    turns: list[Turn] = []
    for _ in range(wanted * 4):
        if rng.random() < 0.06:  # people change their language
            ask = Asker(rng, rng.choice(("en", "zh")), varied=True)
        turn: Turn | None
        if not scenes:
            turn = small_talk(ask) if rng.random() < 0.6 else without_picture(ask)
        elif len(scenes) > 1:
            turn = ask_several(ask, scenes, change)
        else:
            turn = next_turn(ask, scenes[0], turns[-1] if turns else None, tasks)
        if turn and all(turn.question != other.question for other in turns):
            turns.append(turn)
        if len(turns) == wanted:
            break
    return Conversation(tuple(turns), len(scenes), question_first) if turns else None
