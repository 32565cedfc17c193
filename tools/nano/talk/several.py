"""Makers of turns about several pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tools.nano.scenes import Box
from tools.nano.talk.asking import simple, unique
from tools.nano.talk.comparing import caption_parts
from tools.nano.talk.kinds import COLOUR_ZH
from tools.nano.talk.questions import Asker
from tools.nano.talk.scenes import Change, Scene
from tools.nano.talk.turns import Places, Said, Turn, certain, matches, names_of, one, phrase, sentence, the


def _place_of(change: Change) -> tuple[Box, ...]:
    thing = change.before or change.after
    return (thing.box,) if thing else ()


def _about(turn: Turn, picture: int) -> Turn:
    """The same turn, its answer about another picture."""
    return replace(turn, answer=tuple(replace(part, picture=picture) for part in turn.answer))


def same(ask: Asker, change: Change) -> Turn:
    """A question whether two pictures show the same things."""
    holds = change.what == "none"
    answer = {"en": ("No.", "Yes."), "zh": ("不一样。", "一样。")}[ask.language][holds]
    wording = ask("same")
    if "difference" in wording:
        answer = {"No.": "Yes.", "Yes.": "No."}[answer]
    turn = Turn("same", wording, (Said(answer, _place_of(change)),), truth={"text": answer})
    return _about(turn, 1)


def changed(ask: Asker, change: Change) -> Turn:
    """A question for the change in the second picture."""
    return _about(simple(ask, "changed", _change(change, ask.language), _place_of(change)), 1)


def _change(change: Change, language: str) -> str:
    before, after, zh = change.before, change.after, language == "zh"
    if change.what == "gone" and before:
        name = the(names_of(before), language)
        return f"{name}不见了。" if zh else sentence(f"{name} is gone", language)
    if change.what == "added" and after:
        name = one(names_of(after), language)
        return f"多了{name}。" if zh else sentence(f"{name} was added", language)
    if change.what == "colour" and before and after and after.colour:
        name = the(names_of(before), language)
        return f"{name}变成了{COLOUR_ZH[after.colour]}。" if zh else sentence(f"{name} is now {after.colour}", language)
    return "没有变化。" if zh else "Nothing changed."


def which(ask: Asker, scenes: Sequence[Scene]) -> Turn | None:
    """A question for the picture that has a thing."""
    options = []
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            names = names_of(thing)
            having = [i for i, s in enumerate(scenes) if matches(s, names)]
            if having == [number] and all(certain(s, names) for s in scenes):
                options.append((names, number, thing.box))
    if not options:
        return None
    names, number, box = ask.rng.choice(options)
    answer = f"图片{number + 1}。" if ask.language == "zh" else f"Picture {number + 1}."
    return _about(simple(ask, "which", answer, (box,), it=one(names, ask.language)), number)


def in_picture(ask: Asker, scenes: Sequence[Scene]) -> Turn | None:
    """Phrase -> box in the picture that is named."""
    number = ask.rng.randrange(len(scenes))
    found = unique(ask, scenes[number])
    if not found:
        return None
    names, thing = found
    it = the(names, ask.language)
    question = ask("in_picture", it=it, n=str(number + 1))
    answer = Places(phrase(names, ask.language), (thing.box,), picture=number)
    return Turn("in_picture", question, (answer,), (it,), {"boxes": (thing.box,)})


def describe_one(ask: Asker, scenes: Sequence[Scene]) -> Turn | None:
    """The caption of the picture that is named."""
    number = ask.rng.randrange(len(scenes))
    if not scenes[number].things and not scenes[number].sign:
        return None
    parts = caption_parts(scenes[number], ask.language, number)
    text = "".join(part.text for part in parts if isinstance(part, Said))
    return Turn("describe_one", ask("describe_one", n=str(number + 1)), parts, truth={"text": text})


def ask_several(ask: Asker, scenes: Sequence[Scene], change: Change | None) -> Turn | None:
    """Any question about several pictures; change: if the second is a changed copy of the first."""
    roll = ask.rng.random()
    if change and roll < 0.75:
        return changed(ask, change) if roll < 0.5 else same(ask, change)
    roll = ask.rng.random()
    if roll < 0.45:
        return which(ask, scenes)
    return in_picture(ask, scenes) if roll < 0.75 else describe_one(ask, scenes)
