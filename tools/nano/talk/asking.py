"""Makers of turns about one picture: each takes an Asker and a scene, and gives None where no question is possible."""

from __future__ import annotations

from collections.abc import Callable

from tools.nano.scenes import Box
from tools.nano.signs import letter_boxes
from tools.nano.talk.kinds import COLOUR_ZH, COLOURS, NAMES
from tools.nano.talk.questions import Asker
from tools.nano.talk.scenes import Scene, Thing
from tools.nano.talk.turns import (
    Names,
    Places,
    Said,
    Turn,
    certain,
    matches,
    names_of,
    nothing_there,
    one,
    phrase,
    plural,
    sentence,
    the,
)

Maker = Callable[[Asker, Scene], "Turn | None"]


def simple(
    ask: Asker, task: str, answer: str, focus: tuple[Box, ...] = (), thing: Thing | None = None, **words: str
) -> Turn:
    """A turn whose answer is words that are all about the same places."""
    names = tuple(word for key, word in words.items() if key != "n")
    return Turn(task, ask(task, **words), (Said(answer, focus),), names, {"text": answer}, thing)


def unique(ask: Asker, scene: Scene) -> tuple[Names, Thing] | None:
    """A thing and a description that fits no other one; by kind alone where that is enough, sometimes."""
    choices = []
    for thing in scene.things:
        for names in (names_of(thing), names_of(thing), (None, thing.kind)):
            if len(matches(scene, names)) == 1 and certain(scene, names):
                choices.append((names, thing))
    return ask.rng.choice(choices) if choices else None


def missing(ask: Asker, scene: Scene) -> Names:
    """A description that fits nothing; often colour and kind are both there, on different things."""
    rng = ask.rng
    colours = [t.colour for t in scene.things if t.colour] if rng.random() < 0.6 else []
    kinds = [t.kind for t in scene.things] if rng.random() < 0.5 else []
    for _ in range(20):
        kind = rng.choice(kinds or NAMES)
        names: Names = (rng.choice(colours or COLOURS) if kinds or rng.random() < 0.5 else None, kind)
        if not matches(scene, names) and certain(scene, names):
            return names
    return None, next(kind for kind in NAMES if not matches(scene, (None, kind)))


def exists(ask: Asker, scene: Scene) -> Turn | None:
    """A question whether a thing is there."""
    holds = bool(scene.things) and ask.rng.random() < 0.5
    thing = ask.rng.choice(scene.things) if holds else None
    names = missing(ask, scene)
    if thing:
        names = names_of(thing) if ask.rng.random() < 0.6 else (None, thing.kind)
    answer = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}[ask.language][holds]
    focus = (thing.box,) if thing else ()
    only = thing if thing and len(matches(scene, names)) == 1 else None
    return simple(ask, "exists", answer, focus, only, it=one(names, ask.language))


def kind(ask: Asker, scene: Scene) -> Turn | None:
    """A question for the kind of the only thing of a colour."""
    only = [t for t in scene.things if t.colour and len(matches(scene, (t.colour, None))) == 1]
    if not only or not certain(scene, (only[0].colour, None)):
        return None
    thing = ask.rng.choice(only)
    answer = sentence(one((None, thing.kind), ask.language), ask.language)
    return simple(ask, "kind", answer, (thing.box,), thing, it=the((thing.colour, None), ask.language))


def colour(ask: Asker, scene: Scene) -> Turn | None:
    """A question for the colour of the only thing of a kind."""
    only = [t for t in scene.things if t.colour and len(matches(scene, (None, t.kind))) == 1]
    if not only:
        return None
    thing = ask.rng.choice(only)
    return simple(
        ask, "colour", colour_answer(thing, ask.language), (thing.box,), thing, it=the((None, thing.kind), ask.language)
    )


def colour_answer(thing: Thing, language: str) -> str:
    """A colour as an answer, such as Red."""
    name = thing.colour or ""
    return sentence(COLOUR_ZH[name] if language == "zh" else name, language)


def count(ask: Asker, scene: Scene) -> Turn | None:
    """A question for the number of things, or of those of a kind or colour."""
    names: Names = (None, None)
    if scene.things and ask.rng.random() < 0.75:
        thing = ask.rng.choice(scene.things)
        names = (thing.colour, None) if ask.rng.random() < 0.3 else (None, thing.kind)
        if not certain(scene, names):
            names = (None, thing.kind)
    counted = matches(scene, names)
    focus = tuple(thing.box for thing in counted)
    return simple(ask, "count", str(len(counted)), focus, it=plural(names, ask.language))


def _place(ask: Asker, scene: Scene, task: str) -> Turn | None:
    if task == "where" and scene.sign and ask.rng.random() < 0.12:
        label, box, thing = "牌子" if ask.language == "zh" else "sign", scene.sign.box, None
        it = label if ask.language == "zh" else f"the {label}"
    else:
        found = unique(ask, scene)
        if not found:
            return None
        label, it, thing = phrase(found[0], ask.language), the(found[0], ask.language), found[1]
        box = thing.box
    answer = Places(label, (box,), point=task == "point")
    return Turn(task, ask(task, it=it), (answer,), (it,), {"boxes": (box,)}, thing)


def where(ask: Asker, scene: Scene) -> Turn | None:
    """Phrase -> box."""
    return _place(ask, scene, "where")


def point(ask: Asker, scene: Scene) -> Turn | None:
    """Phrase -> point."""
    return _place(ask, scene, "point")


def where_all(ask: Asker, scene: Scene) -> Turn | None:
    """Phrase -> every box."""
    if not scene.things:
        return None
    thing = ask.rng.choice(scene.things)
    names: Names = (thing.colour, None) if thing.colour and ask.rng.random() < 0.4 else (None, thing.kind)
    if not certain(scene, names):
        names = (None, thing.kind)
    boxes = tuple(sorted(t.box for t in matches(scene, names)))
    it = plural(names, ask.language)
    answer = Places(phrase(names, ask.language), boxes)
    return Turn("where_all", ask("where_all", it=it), (answer,), (it,), {"boxes": boxes})


def absent(ask: Asker, scene: Scene) -> Turn | None:
    """Asked for the place, the colour or the text of what is not there."""
    task = ask.rng.choice(("where", "where", "colour", "point", "read"))
    if task == "read":
        if scene.sign:
            return None
        answer = nothing_there("牌子" if ask.language == "zh" else "sign", ask.language)
        return simple(ask, "read", answer)
    names = missing(ask, scene)
    if task == "colour":
        names = (None, names[1])
        if matches(scene, names):
            return None
    answer = nothing_there(phrase(names, ask.language), ask.language)
    return simple(ask, task, answer, it=the(names, ask.language))


def read(ask: Asker, scene: Scene) -> Turn | None:
    """The text of the sign."""
    if not scene.sign:
        return None
    text, letters = scene.sign.text, tuple(letter_boxes(scene.sign, scene.canvas))
    return Turn("read", ask("read"), (Said(text, letters=letters),), truth={"text": text})


def spot(ask: Asker, scene: Scene) -> Turn | None:
    """The text with its place."""
    if not scene.sign:
        return None
    text, letters = scene.sign.text, tuple(letter_boxes(scene.sign, scene.canvas))
    answer = Places(text, (scene.sign.box,), reads=True, letters=letters)
    return Turn("spot", ask("spot"), (answer,), truth={"text": text, "boxes": (scene.sign.box,)})


def unknown(ask: Asker, scene: Scene) -> Turn | None:
    """A question that no picture of this kind answers."""
    found = unique(ask, scene)
    if not found:
        return None
    answer = "我看不出来。" if ask.language == "zh" else "I can't tell."
    return simple(ask, "unknown", answer, thing=found[1], it=the(found[0], ask.language))
